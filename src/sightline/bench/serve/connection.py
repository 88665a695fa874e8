"""HTTP/1.1 over asyncio, with the moment noted at which each piece arrives.

A general HTTP client puts queues and tasks between the socket and its caller, which at many streams show up in the
times between tokens. Here the loop's own callback notes the time and hands the piece on at once; h11 does the protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import h11

from sightline.errors import UsageError, first_line

# Seconds on time.perf_counter(), and the bytes that came then.
OnData = Callable[[float, bytes], None]
MAX_WHOLE = 64 * 2**20  # bytes of an answer that is kept whole


@dataclass(frozen=True)
class Site:
    """A server's address, read from a URL such as http://127.0.0.1:8000 or https://host/prefix/v1."""

    scheme: str
    host: str
    port: int
    prefix: str

    @classmethod
    def read(cls, url: str) -> Site:
        """Raises UsageError where it is no http(s) address."""
        try:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
        except ValueError as error:
            raise UsageError(f"--base-url is {url!r}: {error}; write http://127.0.0.1:8000") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--base-url is {url!r}; write an address such as http://127.0.0.1:8000")
        return cls(parts.scheme, parts.hostname, port, parts.path.rstrip("/"))

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == {"http": 80, "https": 443}[self.scheme] else f"{host}:{self.port}"

    def target(self, path: str) -> str:
        """The request target of `path`; a base that ends with /v1, as OpenAI's clients want it, is no second one."""
        prefix = self.prefix.removesuffix("/v1") if path.startswith("/v1/") else self.prefix
        return prefix + path

    def root_target(self, path: str) -> str:
        """The request target of `path` beside, not under, /v1."""
        return self.prefix.removesuffix("/v1") + path

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.prefix}"


@dataclass
class Reply:
    """What came back. `body` holds the pieces that no `on_data` took."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)

    @property
    def streams(self) -> bool:
        return self.status == 200 and "text/event-stream" in self.headers.get("content-type", "")


class ConnectionLost(OSError):
    """The connection ended before the answer did."""


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._parser = h11.Connection(h11.CLIENT)
        self._transport: asyncio.Transport | None = None
        self._reply = Reply()
        self._done: asyncio.Future[Reply] | None = None
        self._on_data: OnData | None = None
        self.closed = False

    async def request(
        self, method: str, target: str, headers: list[tuple[str, str]], body: bytes, on_data: OnData | None
    ) -> Reply:
        """Send a request and wait for the end of its answer.

        `on_data` gets the pieces of an answer that is an event stream; any other is kept in `Reply.body`.

        Raises:
            ConnectionLost: the connection ended early. OSError: it failed. h11.RemoteProtocolError: not HTTP.
        """
        if self.closed or self._transport is None:
            raise ConnectionLost("the connection was closed")
        self._reply, self._on_data = Reply(), on_data
        self._done = asyncio.get_running_loop().create_future()
        head = self._parser.send(h11.Request(method=method, target=target, headers=headers))
        assert head is not None
        # One write for both: a small request then is one packet.
        self._parser.send(h11.Data(data=body))
        self._parser.send(h11.EndOfMessage())
        self._transport.write(head + body)
        try:
            return await self._done
        except BaseException:
            self.close()
            raise

    @property
    def answered(self) -> bool:
        """Whether something of the latest answer has come."""
        return self._reply.status != 0

    def close(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._parser.receive_data(data)
        self._advance(now)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        if self._done is None or self._done.done():
            return
        if error is None:  # its end may be the answer's: neither a length nor chunks were announced
            with contextlib.suppress(h11.RemoteProtocolError):
                self._parser.receive_data(b"")
            self._advance(time.perf_counter())
        if not self._done.done():
            self._done.set_exception(error or ConnectionLost("the server closed the connection early"))

    def _advance(self, now: float) -> None:
        try:
            while True:
                event = self._parser.next_event()
                if event is h11.NEED_DATA or event is h11.PAUSED:
                    return
                if isinstance(event, h11.Response):
                    self._reply.status = event.status_code
                    self._reply.headers = {
                        name.decode("latin-1").lower(): value.decode("latin-1")
                        for name, value in event.headers
                    }
                elif isinstance(event, h11.Data):
                    self._take(now, bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    self._finish()
                    return
                elif isinstance(event, h11.ConnectionClosed):
                    return
        except (h11.RemoteProtocolError, ValueError) as error:
            self._fail(error)

    def _take(self, now: float, data: bytes) -> None:
        if self._on_data is not None and self._reply.streams:
            self._on_data(now, data)
            return
        self._reply.body += data
        if len(self._reply.body) > MAX_WHOLE:
            raise ValueError(f"the answer is longer than {MAX_WHOLE:,} bytes")

    def _finish(self) -> None:
        if self._parser.our_state is h11.DONE and self._parser.their_state is h11.DONE:
            self._parser.start_next_cycle()
        else:
            self.close()
        if self._done is not None and not self._done.done():
            self._done.set_result(self._reply)

    def _fail(self, error: Exception) -> None:
        lost = self._parser.their_state is h11.ERROR and self.closed
        if self._done is not None and not self._done.done():
            early = ConnectionLost("the server closed the connection early")
            self._done.set_exception(early if lost else error)
        self.close()


class Client:
    """Connections to one server, kept for the next request; as many as are needed at a time."""

    def __init__(
        self, site: Site, *, headers: Mapping[str, str] | None = None, insecure: bool = False
    ) -> None:
        """`insecure` accepts any certificate."""
        self.site = site
        self._headers = [
            ("Host", site.authority),
            ("User-Agent", "sightline-bench"),
            ("Accept", "application/json, text/event-stream"),
            *(headers or {}).items(),
        ]
        self._idle: deque[Connection] = deque()
        self._tls: ssl.SSLContext | None = None
        if site.scheme == "https":
            self._tls = ssl.create_default_context()
            if insecure:
                self._tls.check_hostname = False
                self._tls.verify_mode = ssl.CERT_NONE

    async def post(self, target: str, body: bytes, on_data: OnData | None = None) -> Reply:
        """Raises as `Connection.request`."""
        return await self._request("POST", target, body, on_data)

    async def get(self, target: str) -> Reply:
        """Raises as `Connection.request`."""
        return await self._request("GET", target, b"", None)

    async def close(self) -> None:
        while self._idle:
            self._idle.popleft().close()
        await asyncio.sleep(0)  # the transports' own callbacks

    async def _request(self, method: str, target: str, body: bytes, on_data: OnData | None) -> Reply:
        headers = list(self._headers)
        if method == "POST":
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        while (connection := self._kept()) is not None:
            try:
                reply = await connection.request(method, target, headers, body, on_data)
            except (ConnectionLost, ConnectionResetError, BrokenPipeError):
                if connection.answered:
                    raise
                continue  # the server had closed it meanwhile; nothing of this request was answered
            self._keep(connection)
            return reply
        connection = await self._open()
        reply = await connection.request(method, target, headers, body, on_data)
        self._keep(connection)
        return reply

    def _kept(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        return None

    def _keep(self, connection: Connection) -> None:
        if not connection.closed:
            self._idle.append(connection)

    async def _open(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            Connection, self.site.host, self.site.port, ssl=self._tls
        )
        return connection


def failure_of(error: BaseException) -> tuple[str, str]:
    """Two words to count a failed connection by, and a sentence."""
    if isinstance(error, ConnectionRefusedError) or "Connect call failed" in str(error):
        return "refused", "the connection was refused"
    if isinstance(error, ConnectionLost):
        return "connection lost", str(error)
    if isinstance(error, (ConnectionResetError, BrokenPipeError)):
        return "connection lost", "the server reset the connection"
    if isinstance(error, socket.gaierror):
        return "unknown host", f"the host is not known ({error.strerror})"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "certificate", f"{error.verify_message}; --insecure accepts any certificate"
    if isinstance(error, (h11.RemoteProtocolError, ssl.SSLError)):
        return "not understood", f"what it sends is not understood ({first_line(error)})"
    return type(error).__name__, first_line(error)
