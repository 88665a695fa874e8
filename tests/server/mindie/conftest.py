"""MindIE's routes on a real server, with files that requests may name."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import Response
from PIL import Image as Pillow

from sightline import LLM
from sightline.server.errors import RequestError
from sightline.server.limits import Limits
from sightline.server.listen import bind
from sightline.server.media.fetcher import Fetcher
from sightline.server.media.policy import MediaPolicy
from sightline.server.mindie import management, routes
from sightline.server.service import Service


@dataclass
class Served:
    """A running server; `stopped` are the calls of its stop."""

    client: httpx.Client
    service: Service
    stopped: list[bool] = field(default_factory=list)

    def post(self, path: str, body: object) -> httpx.Response:
        return self.client.post(path, json=body)


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with red.png and blue.png that requests may name, and secret.png beside it."""
    folder = tmp_path_factory.mktemp("media") / "open files"
    folder.mkdir()
    Pillow.new("RGB", (64, 64), "red").save(folder / "red.png")
    Pillow.new("RGB", (30, 70), "blue").save(folder / "blue.png")
    Pillow.new("RGB", (64, 64), "green").save(folder.parent / "secret.png")
    return folder


@pytest.fixture(scope="session")
def llm(tiny_folder: Path) -> Iterator[LLM]:
    llm = LLM(tiny_folder, dtype="fp32", device="cpu")
    yield llm
    llm.close()


@pytest.fixture(scope="session")
def serve(llm: LLM, media: Path) -> Iterator[Callable[..., Served]]:
    """Starts servers; all end with the session."""
    servers: list[tuple[uvicorn.Server, threading.Thread, httpx.Client]] = []

    def start(*, full_text: bool = False, limits: Limits | None = None) -> Served:
        service = Service(llm, ["qwen2_vl"], limits=limits)
        served = Served(httpx.Client(timeout=60), service)

        @asynccontextmanager
        async def lifespan(app: FastAPI):  # type: ignore[no-untyped-def]
            async with Fetcher(MediaPolicy(allowed_local_paths=(media,))) as fetcher:
                service.fetcher = fetcher
                yield

        app = FastAPI(lifespan=lifespan)
        app.include_router(routes.router(service, full_text=full_text))
        app.include_router(
            management.router(service, stop=served.stopped.append, is_stopping=lambda: bool(served.stopped))
        )

        @app.exception_handler(RequestError)
        async def refused(request: object, error: RequestError) -> Response:
            return error.response()

        listener = bind("127.0.0.1", 0)
        served.client.base_url = httpx.URL(f"http://127.0.0.1:{listener.getsockname()[1]}")
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        servers.append((server, thread, served.client))
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        return served

    yield start
    for server, thread, client in servers:
        client.close()
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def served(serve: Callable[..., Served]) -> Served:
    return serve()
