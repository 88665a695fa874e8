"""The HTTP application: which routes it has, and how it tells errors."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import sightline
from sightline.server.errors import RequestError, error_body
from sightline.server.gate import Gate
from sightline.server.openai import chat, models
from sightline.server.service import Service

log = logging.getLogger("sightline.server")


def create_app(service: Service, *, hosts: frozenset[str] | None = None) -> FastAPI:
    """The application around a loaded engine. `hosts` are the names it may be called by; None for any."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.worker.close()

    app = FastAPI(
        title="Sightline", version=sightline.__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.add_middleware(Gate, most=service.limits.max_open, hosts=hosts)
    app.state.worker = service.worker
    _handle_errors(app)

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200 if service.worker.alive else 503)

    for dialect in (chat, models):
        app.include_router(dialect.router(service))
    return app


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return error.response()

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {str(error.detail).lower()}"
        body = error_body(message, status=error.status_code)
        return JSONResponse(body, status_code=error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return JSONResponse(error_body("the server failed", status=500), status_code=500)
