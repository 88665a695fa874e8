"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from sightline.server.openai.describe import MODEL_ANSWER, MODELS_ANSWER, described
from sightline.server.service import Service


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.get("/v1/models", **described(None, MODELS_ANSWER))
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": service.names.listed()}

    @routes.get("/v1/models/{name:path}", **described(None, MODEL_ANSWER))
    async def model(name: str) -> dict[str, Any]:
        return service.names.described(name)

    return routes
