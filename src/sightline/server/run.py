"""Starting and stopping the server: in this process until a signal comes, or beside it in a thread."""

from __future__ import annotations

import contextlib
import errno
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from sightline.engine.llm import LLM
from sightline.errors import SightlineError, UsageError
from sightline.server.app import create_app
from sightline.server.gate import local_names
from sightline.server.limits import Limits
from sightline.server.service import Service

_GRACE = 5  # seconds that running requests have to finish after a signal


@dataclass(frozen=True)
class Address:
    """Where a server listens, and what its model is called. `url` is the base that OpenAI's clients want."""

    host: str
    port: int
    model: str

    @property
    def root(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"


def serve(
    model: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    served_model_name: str | None = None,
    on_ready: Callable[[Address], None] | None = None,
    **llm_options: Any,
) -> None:
    """Load a model and serve it until SIGINT or SIGTERM. Port 0 takes a free one.

    Raises:
        SightlineError: the port is taken, or the model cannot be loaded.
    """
    # Before the model, so that a taken port is known at once.
    listener = bind(host, port)
    try:
        llm = LLM(model, **llm_options)
        names = model_names(model, served_model_name)
        address = Address(host, listener.getsockname()[1], names[0])
        server = _Server(
            create_app(Service(llm, names), hosts=local_names(host)),
            lambda: on_ready(address) if on_ready else None,
        )
        with contextlib.closing(llm):
            server.run(sockets=[listener])
    except OSError as error:
        # Another process may bind the same port while this one loads its model; only one can listen.
        raise _bind_error(error, host, port) from error
    finally:
        listener.close()


@contextlib.contextmanager
def serve_in_background(
    model: LLM | str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    served_model_name: str | None = None,
    limits: Limits | None = None,
    **llm_options: Any,
) -> Iterator[Address]:
    """Serve a model (a loaded engine, or a folder) from a thread while the block runs.

    with serve_in_background("merged") as address:
        client = openai.OpenAI(base_url=address.url, api_key="none")

    Raises:
        SightlineError: as `serve`, or the server does not start.
    """
    listener = bind(host, port)
    with contextlib.ExitStack() as stack:
        stack.callback(listener.close)
        llm = model if isinstance(model, LLM) else LLM(model, **llm_options)
        if llm is not model:
            stack.callback(llm.close)
        names = model_names(llm.model.folder, served_model_name)
        service = Service(llm, names, limits=limits)
        ready = threading.Event()
        server = _Server(create_app(service, hosts=local_names(host)), ready.set)
        thread = threading.Thread(target=server.run, args=([listener],), name="server", daemon=True)
        thread.start()
        while not ready.wait(0.1):
            if not thread.is_alive():
                raise SightlineError("the server stopped while it started; its log above says why")
        try:
            yield Address(host, listener.getsockname()[1], names[0])
        finally:
            server.stop(grace=0)
            thread.join()


def bind(host: str, port: int) -> socket.socket:
    """Take a port without listening on it yet.

    Raises:
        UsageError: no such host or port. SightlineError: the port is taken or not allowed.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"--port must be between 0 and 65535, not {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        raise _bind_error(error, host, port) from error
    return taken


def _bind_error(error: OSError, host: str, port: int) -> SightlineError:
    if error.errno == errno.EADDRINUSE:
        return SightlineError(
            f"port {port} on {host} is in use; choose another with --port (0 takes a free one)"
        )
    if error.errno == errno.EACCES:
        return SightlineError(f"port {port} needs more rights; choose one from 1024 with --port")
    return UsageError(f"cannot listen on {host}:{port}: {error.strerror or error}; see --host and --port")


def model_names(model: str | Path, served: str | None) -> list[str]:
    """What clients may call the model: the given name, or the folder's name and its path as given."""
    if served:
        return [served]
    return list(dict.fromkeys([Path(model).resolve().name, str(model)]))


class _Server(uvicorn.Server):
    """uvicorn that says when it listens, and that ends with code 0 on SIGINT and SIGTERM."""

    def __init__(self, app: FastAPI, on_ready: Callable[[], None]) -> None:
        # Requests end by themselves when the engine lets go of them; uvicorn's own limit is for a client that
        # does not read what it is sent.
        limit = 2 * _GRACE
        super().__init__(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=limit,
            )
        )
        self._end_requests: Callable[[], None] = app.state.worker.close
        self._on_ready = on_ready

    def stop(self, grace: float) -> None:
        """Take no more requests, and end the running ones after `grace` seconds."""
        self.should_exit = True
        timer = threading.Timer(grace, self._end_requests)
        timer.daemon = True
        timer.start()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn raises the signal again after the shutdown, which would make the exit code 130 or 143.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        # A second signal does not wait for running requests.
        self.stop(grace=0 if self.should_exit else _GRACE)
