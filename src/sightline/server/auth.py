"""API keys: who has none may see that the server lives, and the files of its page."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sightline.server.health import is_health_path
from sightline.server.mindie.errors import body_for


class Auth:
    """ASGI middleware that asks for one of several keys: a Bearer token, or Anthropic's x-api-key."""

    def __init__(self, app: ASGIApp, digests: Sequence[bytes]) -> None:
        """`digests` are SHA-256 of the keys: of equal length, so that comparing tells nothing of a key's own."""
        self._app = app
        self._digests = tuple(digests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._digests and not is_open(scope) and not self._knows(scope):
            message = "this server needs one of its API keys, as `Authorization: Bearer KEY`"
            body = body_for(scope["path"], message, 401, code="invalid_api_key")
            refusal = JSONResponse(body, status_code=401, headers={"www-authenticate": "Bearer"})
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        given = hashlib.sha256(_key(scope)).digest()
        # Every key is compared, so that the time does not tell which of them is near.
        found = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(found)


def is_open(scope: Scope) -> bool:
    """Whether a request needs no key: probes, metrics, the version and the page's own files."""
    path = scope["path"]
    if scope["method"] not in ("GET", "HEAD"):
        return False
    return is_health_path(path) or path in ("/", "/metrics", "/version") or path.startswith("/page/")


def _key(scope: Scope) -> bytes:
    headers = dict(scope["headers"])
    kind, _, key = headers.get(b"authorization", b"").strip().partition(b" ")
    if kind.lower() == b"bearer":
        return bytes(key.strip())
    return bytes(headers.get(b"x-api-key", b""))
