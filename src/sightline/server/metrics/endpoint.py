"""GET /metrics."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder

from sightline.server.metrics.mindie import MindieCollector
from sightline.server.metrics.vision import VisionCollector
from sightline.server.metrics.vllm import VllmCollector
from sightline.server.service import Service


def make_registry(
    service: Service, *, mindie: bool = False, turned_away: Callable[[], dict[str, int]] = dict
) -> CollectorRegistry:
    """All that is exported about one server.

    Args:
        mindie: MindIE's names too.
        turned_away: requests that the HTTP server turned away before the engine heard of them, by reason.
    """
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    model = service.names.model
    registry.register(VllmCollector(service.llm, model, turned_away))
    registry.register(VisionCollector(service.llm, model))
    if mindie:
        registry.register(MindieCollector(service.llm, model))
    return registry


def router(
    service: Service, *, mindie: bool = False, turned_away: Callable[[], dict[str, int]] = dict
) -> APIRouter:
    """The route of the metrics port; arguments as of `make_registry`."""
    routes = APIRouter()
    registry = make_registry(service, mindie=mindie, turned_away=turned_away)

    # In a thread of its own, not on the event loop: writing some hundred lines takes milliseconds.
    @routes.get("/metrics", include_in_schema=False)
    def metrics(http: Request) -> Response:
        encode, kind = choose_encoder(http.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": kind})

    return routes
