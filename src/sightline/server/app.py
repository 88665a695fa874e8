"""The HTTP applications: which routes each port has, what stands before them, and how errors are told."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from http.client import responses

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

import sightline
from sightline.server import health as health_routes
from sightline.server.access import Access
from sightline.server.auth import Auth
from sightline.server.control import Control, from_no_page, from_this_machine
from sightline.server.errors import RequestError, continued
from sightline.server.gate import Gate, Traffic, local_names
from sightline.server.health import Health
from sightline.server.metrics import endpoint as metrics
from sightline.server.mindie import management
from sightline.server.mindie import routes as mindie
from sightline.server.mindie.errors import body_for, response_for
from sightline.server.openai import chat, completions, info, models, tokenize
from sightline.server.page.page import page_router
from sightline.server.settings import ServeSettings

log = logging.getLogger("sightline.server")


def create_apps(control: Control, prefixes: Iterable[str]) -> dict[str, FastAPI]:
    """The application of each port (see `ServeSettings.places`); what has no port of its own is at "", the API's."""
    apps = {prefix: _new(control.health) for prefix in prefixes}
    api = apps[""]
    for router in _api_routers(control):
        api.include_router(router)
    own = apps.get("management_")
    guard = from_this_machine if own is None else from_no_page
    for router in _management_routers(control):
        (own or api).include_router(router, dependencies=[Depends(guard)])
    apps.get("metrics_", api).include_router(
        metrics.router(
            control.service,
            mindie=control.settings.mindie_metrics,
            turned_away=lambda: dict(control.traffic.turned_away),
        )
    )
    return apps


def _api_routers(control: Control) -> list[APIRouter]:
    service = control.service
    routers = [module.router(service) for module in (chat, completions, models, tokenize, info)]
    routers.append(mindie.router(service, full_text=control.settings.full_text))
    return [*routers, page_router()] if control.settings.page else routers


def _management_routers(control: Control) -> list[APIRouter]:
    stopping = lambda: control.health.state == "draining"  # noqa: E731
    return [management.router(control.service, stop=control.stop, is_stopping=stopping)]


def loading_app(health: Health) -> FastAPI:
    """What answers until the model is loaded: the health endpoints, and 503 to everything else."""
    app = _new(health)

    @app.api_route("/{path:path}", methods=["GET", "HEAD", "POST"], include_in_schema=False)
    async def not_yet(path: str) -> Response:
        raise RequestError(health.reason, status=503)

    return app


class Front:
    """The application that a port shows at the moment."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def guarded(
    app: ASGIApp,
    settings: ServeSettings,
    health: Health,
    traffic: Traffic,
    *,
    host: str,
    digests: list[bytes],
    most: int,
    most_held: int | None = None,
) -> ASGIApp:
    """Everything that stands before an application, from the log of requests inwards.

    Args:
        host: what the port is bound to.
        digests: of the API keys.
        most: requests that may be open.
        most_held: bytes that their bodies may have together.
    """
    hosts = frozenset(name.lower() for name in settings.allowed_hosts) or local_names(host)
    origins = frozenset(settings.cors_origin)
    closed = lambda: health.state == "draining"  # noqa: E731
    inner: ASGIApp = Gate(
        app, most, hosts, origins=origins, traffic=traffic, closed=closed, most_held=most_held
    )
    inner = Auth(inner, digests)
    if origins:
        # Outside of the keys: a browser asks for leave without them, and must be let read a 401.
        inner = CORSMiddleware(
            inner,
            allow_origins=sorted(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id"],
        )
    return Access(inner, lines=settings.access_log, texts=settings.log_prompts)


def _new(health: Health) -> FastAPI:
    app = FastAPI(title="Sightline", version=sightline.__version__, docs_url=None, redoc_url=None)
    app.include_router(health_routes.router(health))
    _handle_errors(app)
    return app


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return response_for(request.url.path, error)

    @app.exception_handler(ClientDisconnect)
    async def left(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:
        # HTTP's own phrases begin every word large: "Not Found".
        detail = str(error.detail)
        detail = detail.lower() if detail == responses.get(error.status_code) else continued(detail)
        message = f"{request.method} {request.url.path}: {detail}"
        body = body_for(request.url.path, message, error.status_code)
        return JSONResponse(body, status_code=error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return JSONResponse(body_for(request.url.path, "the server failed", 500), status_code=500)
