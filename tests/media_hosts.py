"""Web hosts of good and bad will on loopback, reached under pretended public addresses.

`Net` takes the place of the outside world below the address check: names resolve to what a test says, and a
connection to any address that the check let through ends at the loopback servers. So the check itself is at work.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpcore2
from PIL import Image as Pillow

PUBLIC = "93.184.216.34"
Handler = Callable[[asyncio.StreamWriter], Awaitable[None]]


def picture(format: str = "PNG", size: tuple[int, int] = (32, 24)) -> bytes:
    buffer = io.BytesIO()
    Pillow.linear_gradient("L").resize(size).convert("RGB").save(buffer, format)
    return buffer.getvalue()


PNG = picture()


def answer(body: bytes = b"", status: int = 200, length: int | None = None, **headers: str) -> bytes:
    """A whole HTTP/1.1 answer; `length` may lie."""
    fields = {"content-length": str(len(body) if length is None else length)}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode("latin-1") + body


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\n\r\n" + PNG)
    while True:
        writer.write(bytes(4096))
        await writer.drain()
        await asyncio.sleep(0.001)


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(answer(length=1000) + PNG[:80])
    while True:
        writer.write(b"\0")
        await writer.drain()
        await asyncio.sleep(0.02)


async def stall(writer: asyncio.StreamWriter) -> None:
    writer.write(answer(length=1000) + PNG[:80])
    await writer.drain()
    await asyncio.sleep(30)


async def silence(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def reset(writer: asyncio.StreamWriter) -> None:
    writer.write(answer(length=1000) + PNG[:80])
    await writer.drain()
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def informational(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.001)


async def headers(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"x-more: " + b"a" * 4096 + b"\r\n")
        await writer.drain()
        await asyncio.sleep(0.001)


class Net:
    """The outside world of a test.

    Attributes:
        names: what each name resolves to; a list of lists gives another answer each time it is asked.
        asked: the names that were looked up. dialed: (address, port) of every connection.
        heads: the request heads that the hosts received.
    """

    def __init__(self, names: dict[str, Any] | None = None, routes: dict[str, bytes | Handler] | None = None):
        self.names = {"pics.example": [PUBLIC], **(names or {})}
        self.routes = routes or {}
        self.asked: list[str] = []
        self.dialed: list[tuple[str, int]] = []
        self.heads: list[bytes] = []
        self.open = 0
        self._ports: dict[int, int] = {}

    async def resolve(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        found = self.names.get(host)
        if found is None:
            raise socket.gaierror(-2, "Name or service not known")
        if found and isinstance(found[0], list):
            return found.pop(0) if len(found) > 1 else found[0]
        return found

    @property
    def dialer(self) -> httpcore2.AsyncNetworkBackend:
        return _Dialer(self)

    @contextlib.asynccontextmanager
    async def serving(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[Net]:
        async with contextlib.AsyncExitStack() as stack:
            plain = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            await stack.enter_async_context(plain)
            self._ports[80] = plain.sockets[0].getsockname()[1]
            if tls is not None:
                secure = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=tls)
                await stack.enter_async_context(secure)
                self._ports[443] = secure.sockets[0].getsockname()[1]
            self._tasks: set[asyncio.Task[None]] = set()
            yield self
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def port(self, pretended: int) -> int:
        return self._ports.get(pretended, self._ports[80])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.open += 1
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            reply = asyncio.ensure_future(self._reply(head.split(b" ")[1].decode(), writer))
            left = asyncio.ensure_future(reader.read())
            await asyncio.wait((reply, left), return_when=asyncio.FIRST_COMPLETED)
            for part in (reply, left):
                part.cancel()
            await asyncio.gather(reply, left, return_exceptions=True)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError):
            pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()

    async def _reply(self, target: str, writer: asyncio.StreamWriter) -> None:
        path, _, query = target.partition("?")
        if path == "/to":  # /to?ADDRESS redirects there
            writer.write(answer(status=302, location=unquote(query)))
        elif path == "/hops":  # /hops?N redirects N times, then gives the picture
            left = int(query)
            writer.write(answer(status=307, location=f"/hops?{left - 1}") if left else answer(PNG))
        else:
            route = self.routes.get(path, answer(b"nothing here", 404))
            if isinstance(route, bytes):
                writer.write(route)
            else:
                await route(writer)
        await writer.drain()


class _Dialer(httpcore2.AsyncNetworkBackend):
    def __init__(self, net: Net) -> None:
        self._net = net
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(self, host: str, port: int, **rest: Any) -> httpcore2.AsyncNetworkStream:
        self._net.dialed.append((host, port))
        if port == 9999:
            raise httpcore2.ConnectError("refused")
        return await self._inner.connect_tcp("127.0.0.1", self._net.port(port))


def certificates(folder: Path, *hosts: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(of a server that may call itself `hosts`, of clients that believe it), signed by an authority of our own."""
    names = ",".join(f"DNS:{host}" for host in hosts)
    (folder / "leaf.ext").write_text(f"subjectAltName={names}\n")
    commands = (
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ours "
        "-addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign",
        "req -newkey rsa:2048 -nodes -keyout leaf.key -out leaf.csr -subj /CN=leaf",
        "x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile leaf.ext -out leaf.pem",
    )
    for command in commands:
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "leaf.pem", folder / "leaf.key")
    return server, ssl.create_default_context(cafile=str(folder / "ca.pem"))
