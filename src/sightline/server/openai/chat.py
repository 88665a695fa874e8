"""POST /v1/chat/completions."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from sightline.server.errors import RequestError
from sightline.server.exchange import Events, Exchange, until_left
from sightline.server.openai.protocol import ChatRequest, Reply, conversation_of, read_request, sampling_of
from sightline.server.service import Service
from sightline.server.sse import DONE, event


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/chat/completions", openapi_extra=_body_schema())
    async def chat_completions(http: Request) -> Response:
        request = read_request(await service.body(http))
        return await until_left(http, answer(service, request))

    return routes


async def answer(service: Service, request: ChatRequest) -> Response:
    """Answer a request: the whole answer, or the stream of its events.

    Raises:
        RequestError: it cannot be answered.
    """
    params = sampling_of(request, service.defaults)
    exchange = await service.submit(conversation_of(request), params, model=request.model)
    reply = Reply.new(exchange.model)
    if not request.stream:
        return JSONResponse(reply.completion(await exchange.finished()))
    usage = request.stream_options is not None and request.stream_options.include_usage
    return Events(events(reply, exchange, answers=params.n, include_usage=usage), exchange)


async def events(
    reply: Reply, exchange: Exchange, *, answers: int, include_usage: bool
) -> AsyncIterator[str]:
    """A role chunk for each answer, text as it comes, why each ended, and the usage where it is asked for."""
    try:
        for index in range(answers):
            yield event(reply.chunk(index, {"role": "assistant", "content": ""}))
        async for delta in exchange.deltas():
            if delta.text:
                yield event(reply.chunk(delta.index, {"content": delta.text}))
            if delta.finish_reason is not None:
                yield event(reply.chunk(delta.index, {}, delta.finish_reason))
        if include_usage:
            yield event(reply.usage_chunk(exchange.output))
    except RequestError as error:
        # The status line is gone already, so the error travels as an event.
        yield event(error.body)
    finally:
        exchange.abort()
    yield DONE


def _body_schema() -> dict[str, Any]:
    schema = ChatRequest.model_json_schema()
    # In an OpenAPI document "#/$defs" would point outside of this schema, so its parts are put in place.
    text = json.dumps({name: value for name, value in schema.items() if name != "$defs"})
    for name, part in schema.get("$defs", {}).items():
        text = text.replace(json.dumps({"$ref": f"#/$defs/{name}"}), json.dumps(part))
    content = {"application/json": {"schema": json.loads(text)}}
    return {"requestBody": {"required": True, "content": content}}
