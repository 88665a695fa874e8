"""What is turned away before its body is read: requests beyond the line's length, and those of foreign web pages."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sightline.server.auth import is_open
from sightline.server.errors import RETRY_AFTER, RequestError
from sightline.server.mindie.errors import body_for
from sightline.server.worker import STOPPING

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Traffic:
    """How many requests are open behind a gate, and how many were turned away there, by reason.

    Attributes:
        held: bytes of the bodies of requests whose answer has not begun.
    """

    def __init__(self) -> None:
        self.open = 0
        self.held = 0
        self.turned_away: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        self.open += 1
        self._idle.clear()

    def leave(self) -> None:
        self.open -= 1
        if not self.open:
            self._idle.set()

    async def idle(self) -> None:
        """Wait until none is open."""
        await self._idle.wait()


class Gate:
    """ASGI middleware around everything that computes or that only its own pages may read.

    Args:
        most: requests that compute (every POST) may be open; one more gets 503.
        hosts: names that this server may be called by; None for any.
        origins: sites whose pages may call it; "*" for every one.
        traffic: counts the open requests and the bytes of their bodies.
        most_held: bytes that the bodies of all requests may have together before their answers begin; the request
            that goes beyond gets 503. None is any number.
        closed: whether the server takes no more requests.
    """

    def __init__(
        self,
        app: ASGIApp,
        most: int = 64,
        hosts: frozenset[str] | None = None,
        *,
        origins: frozenset[str] = frozenset(),
        traffic: Traffic | None = None,
        closed: Callable[[], bool] = lambda: False,
        most_held: int | None = None,
    ) -> None:
        self._app = app
        self._most = most
        self._hosts = hosts
        self._origins = origins
        self._traffic = traffic or Traffic()
        self._closed = closed
        self._most_held = most_held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Probes call a server by any name, and a link on another site may lead to the page.
        if scope["type"] != "http" or is_open(scope):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if not self._is_welcome(headers):
            self._traffic.turned_away["foreign"] += 1
            refusal = _refusal(scope, "this server does not answer other web sites' pages", 403)
            await refusal(scope, receive, send)
            return
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if self._closed():
            self._traffic.turned_away["stopping"] += 1
            await _refusal(scope, STOPPING, 503, {"retry-after": RETRY_AFTER})(scope, receive, send)
            return
        if self._traffic.open >= self._most:
            self._traffic.turned_away["full"] += 1
            message = f"{self._most} requests are waiting already; try again later"
            await _refusal(scope, message, 503, {"retry-after": RETRY_AFTER})(scope, receive, send)
            return
        body = _Body(self._traffic, self._most_held, receive, send)
        self._traffic.enter()
        try:
            await self._app(scope, body.receive, body.send)
        finally:
            body.release()
            self._traffic.leave()

    def _is_welcome(self, headers: Mapping[str, str]) -> bool:
        if not is_called(headers.get("host", ""), self._hosts):
            return False
        if "*" in self._origins or headers.get("origin") in self._origins:
            return True
        return not is_foreign(headers)


class _Body:
    """One request's body: counted while it is held, which is taken to be until its answer begins."""

    def __init__(self, traffic: Traffic, most: int | None, receive: Receive, send: Send) -> None:
        self._traffic = traffic
        self._most = most
        self._receive = receive
        self._send = send
        self._held = 0
        self._released = False

    async def receive(self) -> Message:
        """The next message.

        Raises:
            RequestError: 503, with it all bodies together would be too long; the application tells it its own way.
        """
        message = await self._receive()
        size = len(message.get("body", b""))
        if not size or self._released:
            return message
        if self._most is not None and self._traffic.held + size > self._most:
            self._traffic.turned_away["bodies"] += 1
            raise RequestError("the server holds too many long bodies already; try again later", status=503)
        self._held += size
        self._traffic.held += size
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.release()
        await self._send(message)

    def release(self) -> None:
        """Count it no longer, nor what still comes of it."""
        self._traffic.held -= self._held
        self._held, self._released = 0, True


def is_called(host: str, names: frozenset[str] | None) -> bool:
    """Whether a Host header is one of `names`, with any port; None is every name."""
    name = host if host.endswith("]") else host.rsplit(":", 1)[0]
    return names is None or name.lower() in names


def local_names(host: str) -> frozenset[str] | None:
    """What a server bound to `host` may be called by: any name, unless it listens on this machine alone.

    There another name can only come from a page whose name was pointed at this machine after it was loaded.
    """
    if host == "::1":
        return LOCAL_NAMES
    return LOCAL_NAMES | {host} if host == "localhost" or host.startswith("127.") else None


def is_foreign(headers: Mapping[str, str]) -> bool:
    """Whether a browser says that a page of another site sends this; programs send no such headers.

    A page may send a simple request anywhere without asking, and a server on this machine would compute for it.
    """
    if headers.get("sec-fetch-site") == "cross-site":
        return True
    origin = headers.get("origin")
    # Compared as a text: of what is no address at all, urlsplit would make a fault.
    return origin is not None and origin.partition("://")[2] != headers.get("host")


def _refusal(scope: Scope, message: str, status: int, headers: dict[str, str] | None = None) -> Any:
    return JSONResponse(body_for(scope["path"], message, status), status_code=status, headers=headers)
