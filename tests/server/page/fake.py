"""A server with the page and a scripted model, for what a real model does not do on demand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from sightline.server import run
from sightline.server.page.page import page_router

MODELS = [
    {"id": "tiny-vl", "object": "model", "max_model_len": 2048},
    {"id": "shapes", "object": "model", "parent": "tiny-vl", "max_model_len": 2048},
]
USAGE = {
    "prompt_tokens": 312,
    "completion_tokens": 64,
    "total_tokens": 376,
    "prompt_tokens_details": {"cached_tokens": 16, "vision_tokens": 84},
}
TIMINGS = {
    "fetch": 0.012,
    "decode": 0.031,
    "preprocess": 0.018,
    "queue": 0.002,
    "encode": 0.121,
    "prefill": 0.126,
    "time_to_first_token": 0.31,
    "total": 1.87,
    "tokens_per_second": 41.0,
}

# One thing a scripted answer does: text to say, seconds to wait, bytes to send as they are, or end without an end.
Step = str | float | bytes
CUT = b""


@dataclass
class Fake:
    """What the next requests are answered with, and what was asked."""

    url: str = ""
    key: str | None = None
    answers: list[list[Step] | Response] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    models: list[dict[str, Any]] = field(default_factory=lambda: list(MODELS))
    left: threading.Event = field(default_factory=threading.Event)

    def reset(self) -> None:
        self.key = None
        self.answers.clear()
        self.asked.clear()
        self.models = list(MODELS)
        self.left.clear()

    def wait_for(self, condition: Callable[[], bool], seconds: float = 10) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, "what was waited for did not come"
            time.sleep(0.01)


@contextlib.contextmanager
def serve(app: FastAPI) -> Iterator[str]:
    """A free port of loopback with `app` behind it, while the block runs."""
    listener = run.bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


@contextlib.contextmanager
def fake_server() -> Iterator[Fake]:
    fake = Fake()
    app = FastAPI()
    app.include_router(page_router())

    @app.get("/v1/models")
    async def models(http: Request) -> Response:
        return _refused(fake, http) or JSONResponse({"object": "list", "data": fake.models})

    @app.post("/v1/chat/completions")
    async def chat(http: Request) -> Response:
        if (refused := _refused(fake, http)) is not None:
            return refused
        fake.asked.append(await http.json())
        answer = fake.answers.pop(0) if fake.answers else ["Hello."]
        if isinstance(answer, Response):
            return answer
        return StreamingResponse(_play(fake, answer), media_type="text/event-stream")

    with serve(app) as fake.url:
        yield fake


def _refused(fake: Fake, http: Request) -> Response | None:
    if fake.key is None or http.headers.get("authorization") == f"Bearer {fake.key}":
        return None
    return JSONResponse({"error": {"message": "the API key is missing or wrong"}}, status_code=401)


def event(value: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return event({"id": "chatcmpl-1", "model": "tiny-vl", "choices": [choice]})


async def _play(fake: Fake, steps: list[Step]) -> AsyncIterator[bytes]:
    try:
        yield chunk({"role": "assistant", "content": ""})
        for step in steps:
            if isinstance(step, float):
                await asyncio.sleep(step)
            elif step == CUT:
                return
            else:
                yield step if isinstance(step, bytes) else chunk({"content": step})
        yield chunk({}, "stop")
        yield event(
            {"id": "chatcmpl-1", "model": "tiny-vl", "choices": [], "usage": USAGE, "timings": TIMINGS}
        )
        yield b"data: [DONE]\n\n"
    except asyncio.CancelledError:
        fake.left.set()
        raise
