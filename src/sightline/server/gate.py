"""What is turned away before its body is read: requests beyond the line's length, and those of foreign web pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sightline.server.errors import RETRY_AFTER, error_body


class Gate:
    """ASGI middleware around everything that computes, that is, every POST."""

    def __init__(self, app: ASGIApp, most: int = 64, hosts: frozenset[str] | None = None) -> None:
        """`most` requests may be open; `hosts` are the names this server may be called by, None for any."""
        self._app = app
        self._most = most
        self._hosts = hosts
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if is_foreign(headers) or not self._is_ours(headers.get("host", "")):
            refusal = _refusal("this server does not answer other web sites' pages", 403)
            await refusal(scope, receive, send)
            return
        if self._open >= self._most:
            message = f"{self._most} requests are waiting already; try again later"
            await _refusal(message, 503, {"retry-after": RETRY_AFTER})(scope, receive, send)
            return
        self._open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open -= 1

    def _is_ours(self, host: str) -> bool:
        name = host if host.endswith("]") else host.rsplit(":", 1)[0]
        return self._hosts is None or name.lower() in self._hosts


def local_names(host: str) -> frozenset[str] | None:
    """What a server bound to `host` may be called by: any name, unless it listens on this machine alone.

    There another name can only come from a page whose name was pointed at this machine after it was loaded.
    """
    local = frozenset({"localhost", "127.0.0.1", "[::1]"})
    if host == "::1":
        return local
    return local | {host} if host == "localhost" or host.startswith("127.") else None


def is_foreign(headers: Mapping[str, str]) -> bool:
    """Whether a browser says that a page of another site sends this; programs send no such headers.

    A page may send a simple request anywhere without asking, and a server on this machine would compute for it.
    """
    if headers.get("sec-fetch-site") == "cross-site":
        return True
    origin = headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != headers.get("host")


def _refusal(message: str, status: int, headers: dict[str, str] | None = None) -> Any:
    return JSONResponse(error_body(message, status=status), status_code=status, headers=headers)
