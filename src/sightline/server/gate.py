"""What is turned away before its body is read: requests beyond the line's length, and those of foreign web pages."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sightline.server.auth import is_open
from sightline.server.errors import RETRY_AFTER
from sightline.server.mindie.errors import body_for
from sightline.server.worker import STOPPING

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class Traffic:
    """How many requests are open behind a gate, and how many were turned away there, by reason."""

    def __init__(self) -> None:
        self.open = 0
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
        traffic: counts the open requests.
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
    ) -> None:
        self._app = app
        self._most = most
        self._hosts = hosts
        self._origins = origins
        self._traffic = traffic or Traffic()
        self._closed = closed

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
        self._traffic.enter()
        try:
            await self._app(scope, receive, send)
        finally:
            self._traffic.leave()

    def _is_welcome(self, headers: Mapping[str, str]) -> bool:
        if not is_called(headers.get("host", ""), self._hosts):
            return False
        if "*" in self._origins or headers.get("origin") in self._origins:
            return True
        return not is_foreign(headers)


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
