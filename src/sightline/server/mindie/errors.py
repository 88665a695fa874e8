"""Errors as MindIE's clients expect them: {"error": sentence, "error_type": kind}."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sightline.server.errors import RETRY_AFTER, RequestError, error_body

log = logging.getLogger("sightline.server")

_TYPES = {
    400: "Bad Request",
    404: "NotFoundError",
    413: "Input Validation Error",
    422: "Input Validation Error",
    424: "Generation Error",
    500: "Incomplete Generation",
    503: "Service Unavailable",
    504: "Incomplete Generation",
}
_PATHS = ("/", "/generate", "/generate_stream", "/infer", "/infer_token", "/v1/tokenizer", "/info", "/v2")
_ACTIONS = ("/stopService", "/metrics-json", "/v1/config", "/v1/status", "/v2/status")


def speaks_mindie(path: str) -> bool:
    """Whether errors of a path are told in MindIE's form, those of routing and of the gate included."""
    return path in _PATHS or path in _ACTIONS or path.startswith("/v2/")


def body_of(message: str, status: int) -> dict[str, str]:
    kind = _TYPES.get(status) or _TYPES[400 if status < 500 else 500]
    return {"error": message, "error_type": kind}


def body_for(path: str, message: str, status: int, code: str | None = None) -> dict[str, Any]:
    """An error's body in the form that the clients of a path expect: MindIE's or OpenAI's."""
    return body_of(message, status) if speaks_mindie(path) else error_body(message, status=status, code=code)


def response_for(path: str, error: RequestError) -> JSONResponse:
    """An error's answer in the form that the clients of a path expect."""
    return response_of(error) if speaks_mindie(path) else error.response()


def response_of(error: RequestError) -> JSONResponse:
    """MindIE says 422 of a request that cannot be used, where OpenAI says 400."""
    status = 422 if error.status == 400 else error.status
    headers = {"retry-after": RETRY_AFTER} if status == 503 else None
    return JSONResponse(body_of(str(error), status), status_code=status, headers=headers)


class MindieRoute(APIRoute):
    """A route whose errors are MindIE's; `APIRouter(route_class=MindieRoute)`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def handler(request: Request) -> Response:
            try:
                return await answer(request)
            except RequestError as error:
                return response_of(error)
            except (ClientDisconnect, HTTPException):
                raise
            except Exception as error:
                log.error("%s %s failed", request.method, request.url.path, exc_info=error)
                return JSONResponse(body_of("the server failed", 500), status_code=500)

        return handler
