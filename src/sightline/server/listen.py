"""A port: taken before anything else, then served by uvicorn with limits on connections that only wait."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from sightline.errors import SightlineError, UsageError
from sightline.server.settings import ServeSettings

# A client that does not read what it is sent holds the end of the server up for no longer.
_UNREAD_SECONDS = 5
_MAX_HEADER = 64 * 2**10  # bytes
# A client that takes nothing of what waits for it for so long is cut off.
_STUCK_SECONDS = 60.0


@dataclass(frozen=True)
class Address:
    """Where a server listens, and what its model is called. `url` is the base that OpenAI's clients want."""

    host: str
    port: int
    model: str
    scheme: str = "http"

    @property
    def root(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.root}/v1"


def bind(host: str, port: int, prefix: str = "") -> socket.socket:
    """Take a port without listening on it yet. `prefix` is that of the options that errors name.

    Raises:
        UsageError: no such host or port. SightlineError: the port is taken or not allowed.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"{_option(prefix, 'port')} must be between 0 and 65535, not {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named: asyncio turns Nagle's algorithm off for such sockets alone, and with it on, an answer
    # waits up to 40 ms for the client's acknowledgement of the piece before.
    taken = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host.strip("[]"), port))
    except (OSError, UnicodeError) as error:
        taken.close()
        raise bind_error(error, host, port, prefix) from error
    return taken


def bind_error(error: Exception, host: str, port: int, prefix: str = "") -> SightlineError:
    """Why a port cannot be had, with the option that names another."""
    option, number = _option(prefix, "port"), getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return SightlineError(
            f"port {port} on {host} is in use; choose another with {option} (0 takes a free one)"
        )
    if number == errno.EACCES:
        return SightlineError(f"port {port} needs more rights; choose one from 1024 with {option}")
    reason = getattr(error, "strerror", None) or error
    return UsageError(f"cannot listen on {host}:{port}: {reason}; see {_option(prefix, 'host')} and {option}")


def _option(prefix: str, name: str) -> str:
    return f"--{prefix}{name}".replace("_", "-")


class Port(uvicorn.Server):
    """One listener of a server. It sleeps while nothing comes, and leaves signals to whoever started it."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, tls: ssl.SSLContext | None) -> None:
        config = uvicorn.Config(
            app,
            http=_protocol(settings.header_seconds, settings.max_connections),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            # Behind a proxy of this machine, anyone could name any address.
            proxy_headers=False,
            timeout_keep_alive=settings.keep_alive_seconds,  # type: ignore[arg-type]
            timeout_graceful_shutdown=_UNREAD_SECONDS,
            h11_max_incomplete_event_size=_MAX_HEADER,
            backlog=min(2048, max(128, settings.max_connections)),
        )
        config.load()
        config.ssl = tls
        super().__init__(config)
        self.listening = asyncio.Event()
        self._ending = asyncio.Event()

    def stop(self) -> None:
        """Listen no more, and end when what is being answered has been."""
        self.should_exit = True
        self._ending.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    async def main_loop(self) -> None:
        # uvicorn looks ten times a second whether it shall end.
        await self._ending.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _protocol(header_seconds: float, max_connections: int) -> type[H11Protocol]:
    """HTTP/1.1 that waits for a header and for a reader only so long, and holds only so many connections."""

    class Protocol(H11Protocol):
        _header_timer: asyncio.TimerHandle | None = None
        _reader_timer: asyncio.TimerHandle | None = None
        _rest_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                transport.abort()
                return
            self._wait_for_header()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                self._drop_timer()
            elif self._header_timer is None:
                self._wait_for_header()  # the next request's header has begun

        def pause_writing(self) -> None:
            super().pause_writing()
            self._wait_for_reader()

        def resume_writing(self) -> None:
            self._stop_waiting()
            super().resume_writing()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.their_state is h11.SEND_BODY:  # answered early
                self._forget_rest()
                self._rest_timer = self.loop.call_later(header_seconds, self._close_unless_after, self.cycle)

        def connection_lost(self, exc: Exception | None) -> None:
            self._drop_timer()
            self._stop_waiting()
            self._forget_rest()
            super().connection_lost(exc)

        def _wait_for_header(self) -> None:
            self._header_timer = self.loop.call_later(header_seconds, self._give_up)

        def _drop_timer(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

        def _wait_for_reader(self) -> None:
            # An answer that nobody takes keeps its memory, and its stream one of the few open requests.
            unread = _unread(self.transport)
            self._reader_timer = self.loop.call_later(_STUCK_SECONDS, self._look_at_reader, unread)

        def _look_at_reader(self, unread: int) -> None:
            if _unread(self.transport) < unread:
                self._wait_for_reader()
            else:
                self.transport.abort()

        def _stop_waiting(self) -> None:
            if self._reader_timer is not None:
                self._reader_timer.cancel()
                self._reader_timer = None

        def _close_unless_after(self, answered: Any) -> None:
            # A body that nobody waits for must not keep its connection by dripping.
            if self.cycle is answered and self.conn.their_state is h11.SEND_BODY:
                self.transport.close()

        def _forget_rest(self) -> None:
            if self._rest_timer is not None:
                self._rest_timer.cancel()
                self._rest_timer = None

        def _give_up(self) -> None:
            self._header_timer = None
            if self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE:
                self.transport.close()

    return Protocol


def _unread(transport: Any) -> int:
    """Bytes that wait for a client: the transport's, and the system's, which takes new ones in large portions."""
    told = bytes(4)
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import fcntl
        import termios

        told = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, told)
    return int(transport.get_write_buffer_size()) + int.from_bytes(told, sys.byteorder)
