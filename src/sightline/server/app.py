"""The HTTP application: routes, limits and errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

import sightline
from sightline.data.conversation import Conversation
from sightline.engine.llm import LLM
from sightline.engine.stream import Stream
from sightline.server.chat import ChatRequest, Reply, conversation_of, read_request, sampling_of
from sightline.server.errors import RequestError, error_body
from sightline.server.gate import MAX_OPEN, Gate
from sightline.server.sse import HEADERS, chat_events
from sightline.server.worker import Worker

MAX_BODY = 64 * 2**20  # bytes
BODY_SECONDS = 10.0  # between two pieces of a body
log = logging.getLogger("sightline.server")


def create_app(
    llm: LLM,
    names: Sequence[str],
    *,
    max_body: int = MAX_BODY,
    max_open: int = MAX_OPEN,
    hosts: frozenset[str] | None = None,
) -> FastAPI:
    """The application around a loaded engine.

    Args:
        names: what clients may call the model; the first is what answers call it.
        max_body: most bytes of a request.
        max_open: most requests that wait or are answered; more get 503.
        hosts: names this server may be called by; None for any.
    """
    worker = Worker(llm)
    defaults = llm.get_default_sampling_params()
    controls = [token for token in llm.get_tokenizer().get_added_vocab() if token.startswith("<|")]
    started = int(time.time())

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        worker.close()

    app = FastAPI(
        title="Sightline", version=sightline.__version__, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.add_middleware(Gate, most=max_open, hosts=hosts)
    app.state.worker = worker
    _handle_errors(app)

    @app.get("/health")
    async def health() -> Response:
        return Response(status_code=200 if worker.alive else 503)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(name, started, llm) for name in names]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        _check_name(name, names)
        return _model(name, started, llm)

    @app.post("/v1/chat/completions", openapi_extra=_body_schema())
    async def chat_completions(http: Request) -> Response:
        request = read_request(await _body(http, max_body))
        name = names[0] if request.model is None else _check_name(request.model, names)
        params = sampling_of(request, defaults)
        conversation = conversation_of(request)
        _check_texts(conversation, controls)
        stream = worker.add(conversation, params)
        reply = Reply.new(name)
        async with _ended_with_client(http, stream):
            await worker.opened(stream)
            if not request.stream:
                return JSONResponse(reply.completion(await worker.finished(stream)))
        usage = request.stream_options is not None and request.stream_options.include_usage
        events = chat_events(reply, worker, stream, answers=params.n, include_usage=usage)
        return _Events(events, stream)

    return app


class _Events(StreamingResponse):
    """A stream's events. A client that left before the first of them was asked for ends its request too."""

    def __init__(self, events: AsyncIterator[str], stream: Stream) -> None:
        super().__init__(events, media_type="text/event-stream", headers=HEADERS)
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._stream.abort()


@contextlib.asynccontextmanager
async def _ended_with_client(http: Request, stream: Stream) -> AsyncIterator[None]:
    """End a request when its client leaves, and when the block fails."""

    async def watch() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass
        stream.abort()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except BaseException:
        stream.abort()
        raise
    finally:
        watcher.cancel()


async def _body(http: Request, most: int) -> bytes:
    """The request's body, read only as far as it is allowed to be long, and as long as it keeps coming."""
    body = bytearray()
    pieces = http.stream()
    while True:
        try:
            body += await asyncio.wait_for(anext(pieces), BODY_SECONDS)
        except StopAsyncIteration:
            return bytes(body)
        except asyncio.TimeoutError as error:
            raise RequestError(f"no more of the body came in {BODY_SECONDS} s", status=408) from error
        if len(body) > most:
            raise RequestError(f"the body is longer than {most:,} bytes; send smaller media", status=413)


def _check_texts(conversation: Conversation, controls: Sequence[str]) -> None:
    """Text that tokenizers read as control tokens would let a client write other roles' turns."""
    for number, message in enumerate(conversation.messages, 1):
        found = next((token for token in controls if token in message.text), None)
        if found is not None:
            raise RequestError(
                f"message {number} holds the control token {found}; leave it out", param="messages"
            )


def _check_name(name: str, names: Sequence[str]) -> str:
    if name not in names:
        message = f"the model {name!r} does not exist; this server has {', '.join(names)}"
        raise RequestError(message, status=404, param="model", code="model_not_found")
    return name


def _model(name: str, created: int, llm: LLM) -> dict[str, Any]:
    known = {"id": name, "object": "model", "created": created, "owned_by": "sightline"}
    return {**known, "max_model_len": llm.max_model_len}


def _body_schema() -> dict[str, Any]:
    schema = ChatRequest.model_json_schema()
    # In an OpenAPI document "#/$defs" would point outside of this schema, so its parts are put in place.
    text = json.dumps({name: value for name, value in schema.items() if name != "$defs"})
    for name, part in schema.get("$defs", {}).items():
        text = text.replace(json.dumps({"$ref": f"#/$defs/{name}"}), json.dumps(part))
    content = {"application/json": {"schema": json.loads(text)}}
    return {"requestBody": {"required": True, "content": content}}


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
