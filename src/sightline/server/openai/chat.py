"""POST /v1/chat/completions."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from sightline.engine.sampling.params import SamplingParams
from sightline.server.errors import RequestError, error_body
from sightline.server.exchange import Events, Exchange, until_left
from sightline.server.openai.answers import spaced
from sightline.server.openai.call_grammar import has_tags
from sightline.server.openai.describe import CHAT_ANSWER, described
from sightline.server.openai.fields import ChatRequest
from sightline.server.openai.logprobs import TokenNames
from sightline.server.openai.reading import read_request
from sightline.server.openai.reply import Chunks, Head, Told, completion
from sightline.server.openai.sampling import chat_sampling, truncation
from sightline.server.openai.structured import form_of
from sightline.server.openai.template import Template
from sightline.server.openai.tools import CLOSE, OPEN, Toolbox, read_tools
from sightline.server.service import Service
from sightline.server.sse import DONE, PING, compact, event, patient
from sightline.server.worker import FAILED

log = logging.getLogger("sightline.server")


def router(service: Service) -> APIRouter:
    routes = APIRouter()
    template = Template(service)

    @routes.post("/v1/chat/completions", **described(ChatRequest, CHAT_ANSWER, streams=True))
    async def chat_completions(http: Request) -> Response:
        request = read_request(await service.body(http), ChatRequest)
        return await until_left(http, answer(service, template, request))

    return routes


async def answer(service: Service, template: Template, request: ChatRequest) -> Response:
    """Answer a request: the whole answer, or the stream of its events.

    Raises:
        RequestError: it cannot be answered.
    """
    service.names.find(request.model)
    toolbox = read_tools(request.tools, request.tool_choice, request.parallel_tool_calls)
    form = form_of(request, toolbox, tags=has_tags(service.llm.get_tokenizer()))
    params = chat_sampling(request, service.defaults, service.limits, form)
    params = _showing_calls(params, toolbox, service)
    truncated = truncation(request, service.llm.max_model_len)
    if truncated is None:
        asked = template.ask(request, toolbox)
    else:
        asked = await service.threads.run(lambda: template.ask(request, toolbox, truncated=truncated))
    try:
        exchange = await service.submit(
            asked.prompt,
            params,
            model=request.model,
            deltas=bool(request.stream),
            priority=request.priority or 0,
            where=asked.where,
        )
    except RequestError as error:
        raise error if form is None else form.renamed(error) from error
    head = Head.new("chat.completion", exchange.model, "chatcmpl", request.request_id)
    told = _told(request, params, toolbox, service, asked.last_said if request.echo else "")
    if not request.stream:
        return json_response(completion(head, told, await exchange.finished()))
    chunks = Chunks(head, told, params.n)
    return Events(events(chunks, exchange, interval=request.stream_interval), exchange)


def json_response(body: dict[str, Any]) -> Response:
    return Response(compact(body), media_type="application/json")


def _showing_calls(params: SamplingParams, toolbox: Toolbox, service: Service) -> SamplingParams:
    """Calls are read from the text, so their tags must stand in it; one call is enough where there is to be one."""
    if not toolbox:
        return params
    if OPEN in service.llm.get_tokenizer().all_special_tokens:
        params = replace(params, skip_special_tokens=False)
    if not toolbox.parallel and not toolbox.required:
        params = replace(params, stop=(*params.stops, CLOSE))
    return params


def _told(
    request: ChatRequest, params: SamplingParams, toolbox: Toolbox, service: Service, echoed: str
) -> Told:
    options = request.stream_options
    return Told(
        TokenNames(service.llm.get_tokenizer(), as_ids=bool(request.return_tokens_as_token_ids)),
        toolbox=toolbox,
        logprobs=params.logprobs if request.logprobs else None,
        token_ids=bool(request.return_token_ids),
        usage=options is not None and bool(options.include_usage),
        running=options is not None and bool(options.continuous_usage_stats),
        echoed=echoed,
    )


async def events(chunks: Chunks, exchange: Exchange, *, interval: int | None = None) -> AsyncIterator[str]:
    """A role chunk for each answer, text as it comes, why each ended, and the usage where it is asked for."""
    try:
        for one in chunks.begin(exchange.output):
            yield one
        async for delta in patient(spaced(exchange.deltas(), interval or 1)):
            if delta is None:
                yield PING
                continue
            for one in chunks.tell(delta, lambda: [exchange.output]):
                yield one
        for one in chunks.end(exchange.output):
            yield one
    except RequestError as error:
        # The status line is gone already, so the error travels as an event.
        yield event(error.body)
    except Exception:
        log.exception("a stream failed")
        yield event(error_body(FAILED, status=500))
    finally:
        exchange.abort()
    yield DONE
