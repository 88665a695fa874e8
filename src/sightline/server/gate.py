"""What is turned away before its body is read: requests beyond the line's length, and those of foreign web pages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sightline.server.errors import error_body

MAX_OPEN = 64  # requests that wait or are answered; each may hold a body of MAX_BODY bytes
_RETRY_AFTER = "1"  # seconds


class Gate:
    """ASGI middleware around everything that computes, that is, every POST."""

    def __init__(self, app: ASGIApp, most: int = MAX_OPEN) -> None:
        self._app = app
        self._most = most
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if is_foreign(headers):
            refusal = _refusal("this server does not answer other web sites' pages", 403)
            await refusal(scope, receive, send)
            return
        if self._open >= self._most:
            message = f"{self._most} requests are waiting already; try again later"
            await _refusal(message, 503, {"retry-after": _RETRY_AFTER})(scope, receive, send)
            return
        self._open += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open -= 1


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
