"""MindIE's management port, beside its health checks: what the server is, how busy it is, and what may be done to it.

Who may reach these routes is not decided here: they belong on a port of their own or on a shared one behind a check
that the client is on this machine, and either way behind one that no foreign page sends the request: of a GET such as
/stopService a picture's address is enough (see `sightline.server.control`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import PlainTextResponse, Response

from sightline.errors import SightlineError
from sightline.server.errors import RequestError
from sightline.server.mindie import info
from sightline.server.mindie.describe import ANY, described
from sightline.server.mindie.errors import MindieRoute
from sightline.server.mindie.fields import Field, read_body, read_fields, schema_of
from sightline.server.service import Service
from sightline.server.worker import STOPPING

_LOAD = (Field("lora_name", "text"), Field("lora_path", "text"))
_UNLOAD = (Field("lora_name", "text"),)


def router(service: Service, *, stop: Callable[[bool], object], is_stopping: Callable[[], bool]) -> APIRouter:
    """The management routes.

    Args:
        stop: begins to end the server, at once where its argument is true; returns immediately.
        is_stopping: whether that has happened already.
    """
    routes = APIRouter()
    _add_information(routes, service)
    _add_adapters(routes, service)
    told = APIRouter(route_class=MindieRoute)

    @told.get("/stopService", **described(None))
    async def stop_service(mode: str = "") -> Response:
        force = mode == "Force"
        if is_stopping() and not force:
            raise RequestError("the server is stopping already", status=500)
        stop(force)
        return Response(status_code=200)

    routes.include_router(told)
    return routes


def _add_information(routes: APIRouter, service: Service) -> None:
    told = APIRouter(route_class=MindieRoute)

    def check_alive() -> None:
        if not service.worker.alive:
            raise RequestError(STOPPING, status=503)

    @told.get("/info", **described(None, ANY))
    async def tgi_info() -> dict[str, Any]:
        check_alive()
        return info.tgi_info(service)

    @told.get("/v1/config", **described(None, ANY))
    async def config() -> dict[str, Any]:
        return info.config(service)

    @told.get("/v1/status", **described(None, ANY))
    async def status() -> dict[str, Any]:
        check_alive()
        return info.status(service)

    @told.get("/v2/status", **described(None, ANY))
    async def status_v2() -> dict[str, Any]:
        check_alive()
        return info.status_v2(service)

    @told.get("/v2/models/{model}/ready", **described(None))
    async def ready(model: str) -> Response:
        service.names.find(model)
        check_alive()
        return Response(status_code=200)

    @told.get("/v2/models/{model}/getSlotCount", **described(None, ANY))
    async def slot_count(model: str) -> dict[str, Any]:
        service.names.find(model)
        return info.slots(service)

    @told.get("/metrics-json", **described(None, ANY))
    async def metrics_json(http: Request) -> dict[str, Any]:
        check_alive()
        return info.metrics_json(service, http.url.netloc)

    routes.include_router(told)


def _add_adapters(routes: APIRouter, service: Service) -> None:
    """vLLM has these two as well, so their errors are OpenAI's, as of everything else under /v1."""

    @routes.post("/v1/load_lora_adapter", **_described(_LOAD))
    async def load(http: Request) -> Response:
        values = read_fields(read_body(await service.body(http)), _LOAD)
        name, folder = _name(values), values.get("lora_path")
        if not folder or "\0" in folder:
            raise RequestError("lora_path must be the folder of an adapter", param="lora_path")
        if name in {entry["id"] for entry in service.names.listed()}:
            raise RequestError(f"{name!r} is a model's name already; choose another", param="lora_name")
        try:
            await service.threads.run(lambda: service.llm.engine.load_adapter(name, Path(folder)))
        except SightlineError as error:
            raise RequestError(str(error), param="lora_path") from error
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    @routes.post("/v1/unload_lora_adapter", **_described(_UNLOAD))
    async def unload(http: Request) -> Response:
        name = _name(read_fields(read_body(await service.body(http)), _UNLOAD))
        if name not in service.llm.engine.adapters:
            raise RequestError(
                f"there is no adapter called {name!r}", status=404, param="lora_name", code="not_found"
            )
        try:
            await service.threads.run(lambda: service.llm.engine.unload_adapter(name))
        except SightlineError as error:
            raise RequestError(str(error), param="lora_name") from error
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


def _name(values: dict[str, Any]) -> str:
    name = values.get("lora_name")
    if not isinstance(name, str) or not name:
        raise RequestError("lora_name must be the adapter's name", param="lora_name")
    return name


def _described(table: tuple[Field, ...]) -> dict[str, Any]:
    body = {**schema_of(table), "required": [field.name for field in table]}
    route = described(body, errors=False)
    route["responses"][200]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return route
