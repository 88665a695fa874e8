"""A server from its first listening port to its last answer: loading, ready, draining, ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from sightline.engine.llm import LLM
from sightline.errors import SightlineError
from sightline.server.app import Front, create_apps, guarded, loading_app
from sightline.server.control import Control
from sightline.server.gate import Traffic
from sightline.server.health import Health
from sightline.server.limits import Limits
from sightline.server.listen import Address, Port, bind_error
from sightline.server.media import Fetcher
from sightline.server.service import Service
from sightline.server.settings import ServeSettings

log = logging.getLogger("sightline.server")

_LOOK_EVERY = 5.0  # most seconds between two looks at the engine
# What is cut at the end of the drain has this long to tell its client so.
_CUT_SECONDS = 5.0


@dataclass(frozen=True)
class Listener:
    """A port that was taken, before anything is served on it."""

    socket: socket.socket
    host: str
    tls: ssl.SSLContext | None = None

    def address(self, model: str) -> Address:
        scheme = "http" if self.tls is None else "https"
        return Address(self.host, self.socket.getsockname()[1], model, scheme)


Ready = Callable[[dict[str, Address]], None]


class Lifecycle:
    """Serves one engine on one to three ports of one event loop.

    Args:
        listeners: by the prefixes of `ServeSettings.places`.
        limits: None takes those of the settings.
        ends_with_engine: stop when the engine has died, so that whoever watches the process starts a new one.

    Attributes:
        llm: the engine, once it is loaded.
        failure: why the server ended without having been asked to.
    """

    def __init__(
        self,
        settings: ServeSettings,
        listeners: dict[str, Listener],
        *,
        limits: Limits | None = None,
        ends_with_engine: bool = False,
    ) -> None:
        self.settings = settings
        self.health = Health(settings.stall_seconds)
        self.llm: LLM | None = None
        self.failure: SightlineError | None = None
        self._listeners = listeners
        self._limits = limits or settings.limits()
        self._policy = settings.media_policy()
        self._digests = settings.key_digests()
        self._ends_with_engine = ends_with_engine
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signalled = self._wanted = False

    def stop(self, force: bool = False) -> None:
        """Take no more requests and end when the running ones have, or at once; from any thread, and again."""
        self._wanted = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._begin_end, force)

    async def run(self, load: Callable[[], LLM], on_ready: Ready) -> None:
        """Serve until `stop`, or the death of the engine.

        Args:
            load: gives the engine; called in a thread of its own while the ports answer that it is not there yet.
            on_ready: called with the address of each port once requests are answered.

        Raises:
            SightlineError: a port is taken after all; also whatever `load` raises.
        """
        self._loop = asyncio.get_running_loop()
        self._asked, self._forced, self._traffic = asyncio.Event(), asyncio.Event(), Traffic()
        if self._wanted:  # by a signal that was early
            return
        fronts = {prefix: Front(loading_app(self.health)) for prefix in self._listeners}
        ports = {prefix: self._port(prefix, front) for prefix, front in fronts.items()}
        tasks = {
            prefix: asyncio.create_task(port.serve([self._listeners[prefix].socket]))
            for prefix, port in ports.items()
        }
        try:
            for prefix, port in ports.items():
                await self._listening(prefix, port, tasks[prefix])
            self.llm = await self._loaded(load)
            if self.llm is not None:
                await self._serve(self.llm, fronts, on_ready, ports, tasks)
        finally:
            await _end(ports, tasks)

    async def _serve(
        self,
        llm: LLM,
        fronts: dict[str, Front],
        on_ready: Ready,
        ports: dict[str, Port],
        tasks: dict[str, asyncio.Task[None]],
    ) -> None:
        async with Fetcher(self._policy) as fetcher:
            service = Service(llm, self.settings.names, limits=self._limits, fetcher=fetcher)
            control = Control(service, self.settings, self.health, self._traffic, self.stop)
            for prefix, app in create_apps(control, self._listeners).items():
                fronts[prefix].app = app
            self.health.loaded(llm)
            name = service.names.model
            on_ready({prefix: listener.address(name) for prefix, listener in self._listeners.items()})
            try:
                await self._until_asked()
            finally:
                await self._drain(service)
                await _end(ports, tasks)

    def _port(self, prefix: str, front: Front) -> Port:
        listener = self._listeners[prefix]
        # Only what is asked of the model is counted: a full server must still be manageable.
        traffic = Traffic() if prefix else self._traffic
        app = guarded(
            front,
            self.settings,
            self.health,
            traffic,
            host=listener.host,
            digests=self._digests,
            most=self._limits.max_open,
            most_held=max(self._limits.max_held_body, self._limits.max_body),
        )
        return Port(app, self.settings, listener.tls)

    async def _listening(self, prefix: str, port: Port, task: asyncio.Task[None]) -> None:
        """Wait until a port listens: another process may have begun to since it was taken."""
        up = asyncio.ensure_future(port.listening.wait())
        await asyncio.wait((up, task), return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        if task.done():
            error = task.exception()
            if not isinstance(error, OSError):
                raise error or SightlineError("the server ended while it started")
            listener = self._listeners[prefix]
            raise bind_error(error, listener.host, listener.socket.getsockname()[1], prefix) from error

    async def _loaded(self, load: Callable[[], LLM]) -> LLM | None:
        """The engine; None where the server shall end before it is loaded."""
        loading = asyncio.get_running_loop().create_future()
        loop = loading.get_loop()

        def settle(llm: LLM | None, error: BaseException | None) -> None:
            if loading.cancelled():
                return
            if error is not None:
                loading.set_exception(error)
            else:
                loading.set_result(llm)

        def work() -> None:
            result: tuple[LLM | None, BaseException | None]
            try:
                result = load(), None
            except BaseException as error:
                # A future takes no StopIteration, and one that ends the interpreter would end the loop's thread.
                result = None, error if isinstance(error, Exception) else SightlineError(repr(error))
            with contextlib.suppress(RuntimeError):  # nobody waits any more
                loop.call_soon_threadsafe(settle, *result)

        # A daemon: the end of the process does not wait for a model that nobody will use.
        threading.Thread(target=work, name="load", daemon=True).start()
        asked = asyncio.ensure_future(self._asked.wait())
        await asyncio.wait((loading, asked), return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        if loading.done():
            return loading.result()
        loading.cancel()
        return None

    async def _until_asked(self) -> None:
        """Wait until the server shall end, looking at the engine now and then."""
        pause = min(_LOOK_EVERY, self.settings.stall_seconds / 4)
        while not await _within(self._asked.wait(), pause):
            if self.health.watch() == "dead" and self._ends_with_engine:
                assert self.llm is not None
                died = self.llm.engine.failure
                self.failure = SightlineError(
                    f"the engine died ({type(died).__name__}: {died}), so the server ends; the log above says where"
                )
                return

    async def _drain(self, service: Service) -> None:
        """Let the running requests end, and cut what takes too long."""
        self.health.drain()
        seconds = 0.0 if self.health.hopeless or self._forced.is_set() else self.settings.drain_seconds
        if self._traffic.open and seconds:
            log.info("stopping: %d requests have %g s to end", self._traffic.open, seconds)
        idle, forced = (asyncio.ensure_future(one) for one in (self._traffic.idle(), self._forced.wait()))
        await asyncio.wait((idle, forced), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        forced.cancel()
        if not idle.done():
            log.warning("stopping: %d requests are cut", self._traffic.open)
        service.worker.close()
        await asyncio.wait((idle,), timeout=_CUT_SECONDS)
        idle.cancel()

    def _begin_end(self, force: bool) -> None:
        self._asked.set()
        if force:
            self._forced.set()
        # From this moment on probes hear of it, even while the model is loaded.
        self.health.drain()

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the server in good order, a second one the process at once."""
        before = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signalled:
            leave(128 + number)
        self._signalled = True
        self.stop()


def leave(code: int) -> None:
    """End the process without waiting for any of its threads."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


async def _within(work: Coroutine[Any, Any, Any], seconds: float) -> bool:
    """Whether `work` ends in time."""
    try:
        await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError:
        return False
    return True


async def _end(ports: dict[str, Port], tasks: dict[str, asyncio.Task[None]]) -> None:
    for port in ports.values():
        port.stop()
    await asyncio.gather(*tasks.values(), return_exceptions=True)
