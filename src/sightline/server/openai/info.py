"""GET /version and /load, as vLLM has them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

import sightline
from sightline.server.openai.describe import described
from sightline.server.service import Service

_VERSION = {"type": "object", "required": ["version"], "properties": {"version": {"type": "string"}}}
_LOAD = {"type": "object", "required": ["server_load"], "properties": {"server_load": {"type": "integer"}}}


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.get("/version", **described(None, _VERSION))
    async def version() -> dict[str, Any]:
        return {"version": sightline.__version__}

    @routes.get("/load", **described(None, _LOAD))
    async def load() -> dict[str, Any]:
        """Requests that are prepared, waiting or answered."""
        return {"server_load": service.worker.open}

    return routes
