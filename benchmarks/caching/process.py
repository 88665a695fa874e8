"""A worker as a process of its own that answers one job at a time."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from caching.job import Answer, Job
from sightline.errors import SightlineError

_HERE = Path(__file__).parents[1]


class Worker:
    """An engine in a Python of its own; `close` ends it.

    Raises:
        SightlineError: it does not start, with the end of what it wrote.
    """

    def __init__(self, engine: str, python: str, model: Path, dtype: str, threads: int) -> None:
        self.name = engine
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (as long as the process)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(_HERE), os.environ.get("PYTHONPATH")))),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(threads),
            "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
        }
        command = [python, "-m", "caching.worker", engine, str(model), dtype, str(threads)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment,
                text=True,
                encoding="utf-8",
            )
        except OSError as error:
            raise SightlineError(f"{engine}: cannot start {python}: {error.strerror}") from error
        hello = self._read()
        if "failed" in hello:
            self.close()
            raise SightlineError(f"{engine} does not start: {hello['failed']}")
        self.versions: dict[str, str] = hello["ready"]

    def run(self, job: Job) -> Answer:
        """Do a job.

        Raises:
            SightlineError: the process ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job.to_json()) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise SightlineError(f"{self.name} ended; it wrote: {self.log_end()}") from error
        return Answer(**self._read())

    def log_end(self) -> str:
        """The end of what it wrote."""
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), 2000, max(0, size - 2000)).decode("utf-8", "replace").strip()

    def close(self) -> None:
        """End the process and wait for it."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise SightlineError(f"{self.name} ended with code {code}; it wrote:\n{self.log_end()}")
        found: dict[str, Any] = json.loads(line)
        return found
