"""A server as a process of its own: started on a free port, watched until it answers, and gone at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from online.contestants import Server
from sightline.errors import SightlineError

_POLL = 0.1  # seconds
_START_LIMIT = 900.0
_STOP_LIMIT = 20.0


@dataclass
class Running:
    """A server that answers. `ready_s` is from the start of its process."""

    process: psutil.Process
    url: str
    ready_s: float
    log: IO[str]

    def log_end(self) -> str:
        """The end of what it wrote."""
        return _end_of(self.log)

    def cpu_seconds(self) -> float:
        """Of all its processes so far."""
        total = 0.0
        for one in _family(self.process):
            with contextlib.suppress(psutil.Error):
                times = one.cpu_times()
                total += times.user + times.system
        return total

    def idle_share(self, seconds: float) -> float:
        """Share of one core that it takes while nobody asks."""
        before, started = self.cpu_seconds(), time.perf_counter()
        time.sleep(seconds)
        return (self.cpu_seconds() - before) / (time.perf_counter() - started)


@contextlib.contextmanager
def running(server: Server) -> Iterator[Running]:
    """Start a server and wait until it is ready; at the end, whatever happens, none of its processes is left.

    Raises:
        SightlineError: it ended, or was not ready in time; the end of what it wrote is part of the text.
    """
    port = free_port()
    command = [*server.command, "--port", str(port)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"} | server.environment
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        started = time.perf_counter()
        try:
            # A session of its own: Ctrl-C here is not also sent there.
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise SightlineError(f"{server.name}: cannot start {command[0]}: {error.strerror}") from error
        whole = psutil.Process(process.pid)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(process, url + server.ready, server.name, log)
            yield Running(whole, url, time.perf_counter() - started, log)
        finally:
            _stop(process, whole)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _wait(process: subprocess.Popen[bytes], address: str, name: str, log: IO[str]) -> None:
    deadline = time.monotonic() + _START_LIMIT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SightlineError(f"{name} ended with code {process.returncode}; it wrote:\n{_end_of(log)}")
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(address, timeout=5):
            return
        time.sleep(_POLL)
    raise SightlineError(f"{name} was not ready after {_START_LIMIT:.0f} s; it wrote:\n{_end_of(log)}")


def _end_of(log: IO[str]) -> str:
    size = os.fstat(log.fileno()).st_size
    return os.pread(log.fileno(), 3000, max(0, size - 3000)).decode("utf-8", "replace").strip()


def _stop(process: subprocess.Popen[bytes], whole: psutil.Process) -> None:
    """Ask it to end, then make it: children first known, for they may have left its group."""
    family = _family(whole)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM)
    _, left = psutil.wait_procs(family, timeout=_STOP_LIMIT)
    for one in left:
        with contextlib.suppress(psutil.Error):
            one.kill()
    psutil.wait_procs(left, timeout=5)
    process.wait()


def _family(whole: psutil.Process) -> list[psutil.Process]:
    try:
        return [whole, *whole.children(recursive=True)]
    except psutil.Error:
        return [whole]


def log_tail(path: Path, characters: int = 3000) -> str:
    """The end of a log, to be part of an error."""
    return path.read_text(encoding="utf-8", errors="replace")[-characters:].strip()
