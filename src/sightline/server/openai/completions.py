"""POST /v1/completions: prompts that no template is applied to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from fastapi import APIRouter, Request
from fastapi.responses import Response

from sightline.engine.outputs import RequestOutput
from sightline.engine.sampling.params import SamplingParams
from sightline.engine.stream import Delta
from sightline.server.errors import RequestError, error_body
from sightline.server.exchange import Events, Exchange, until_left
from sightline.server.openai.answers import spaced
from sightline.server.openai.chat import json_response
from sightline.server.openai.completion_reply import Chunks, Told, completion
from sightline.server.openai.describe import COMPLETION_ANSWER, described
from sightline.server.openai.fields import CompletionRequest
from sightline.server.openai.logprobs import TokenNames
from sightline.server.openai.prompts import Raw, prompts_of
from sightline.server.openai.reading import read_request
from sightline.server.openai.reply import Head
from sightline.server.openai.sampling import completion_sampling
from sightline.server.openai.structured import Form, form_of
from sightline.server.service import Service
from sightline.server.sse import DONE, PING, event, patient
from sightline.server.worker import FAILED

log = logging.getLogger("sightline.server")

Numbered = tuple[int, Delta]


def router(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/v1/completions", **described(CompletionRequest, COMPLETION_ANSWER, streams=True))
    async def completions(http: Request) -> Response:
        request = read_request(await service.body(http), CompletionRequest)
        return await until_left(http, answer(service, request))

    return routes


async def answer(service: Service, request: CompletionRequest) -> Response:
    """Answer a request: the whole answers, or the stream of their events.

    Raises:
        RequestError: it cannot be answered.
    """
    service.names.find(request.model)
    form = form_of(request)
    params = completion_sampling(request, service.defaults, service.limits, form)
    if request.truncate_prompt_tokens is None:
        prompts = prompts_of(request, service)
    else:
        prompts = await service.threads.run(lambda: prompts_of(request, service))
    exchanges = await _submit(service, prompts, params, request, form)
    head = Head.new("text_completion", exchanges[0].model, "cmpl", request.request_id)
    told = _told(request, params, prompts, service)
    if not request.stream:
        return json_response(completion(head, told, await _finished(exchanges)))
    chunks = Chunks(head, told, len(prompts))
    return Events(events(chunks, exchanges, request.stream_interval), *exchanges)


async def _submit(
    service: Service,
    prompts: Sequence[Raw],
    params: SamplingParams,
    request: CompletionRequest,
    form: Form | None,
) -> list[Exchange]:
    """All prompts at once; the first that is refused ends the others."""
    tasks = [
        asyncio.ensure_future(
            service.submit(
                raw.prompt,
                params,
                model=request.model,
                deltas=bool(request.stream),
                priority=request.priority or 0,
            )
        )
        for raw in prompts
    ]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException as error:
        for task in tasks:
            task.cancel()
        for given in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(given, Exchange):
                given.abort()
        if isinstance(error, RequestError):
            raise _about_prompt(error if form is None else form.renamed(error)) from error
        raise


def _about_prompt(error: RequestError) -> RequestError:
    """The engine's errors are about messages, unless they name a setting."""
    told = error.body["error"]
    if told["param"] != "messages":
        return error
    return RequestError(str(error), status=error.status, param="prompt", code=told["code"])


async def _finished(exchanges: Sequence[Exchange]) -> list[RequestOutput]:
    try:
        return list(await asyncio.gather(*(exchange.finished() for exchange in exchanges)))
    finally:
        for exchange in exchanges:
            exchange.abort()


def _told(
    request: CompletionRequest, params: SamplingParams, prompts: Sequence[Raw], service: Service
) -> Told:
    tokenizer, options = service.llm.get_tokenizer(), request.stream_options
    return Told(
        TokenNames(tokenizer, as_ids=bool(request.return_tokens_as_token_ids)),
        n=params.n,
        logprobs=params.logprobs if request.logprobs is not None else None,
        echoed=[raw.echoed(tokenizer) for raw in prompts] if request.echo else None,
        silent=request.max_tokens == 0,
        token_ids=bool(request.return_token_ids),
        prompt_logprobs=request.prompt_logprobs is not None,
        usage=options is not None and bool(options.include_usage),
        running=options is not None and bool(options.continuous_usage_stats),
    )


async def events(
    chunks: Chunks, exchanges: Sequence[Exchange], interval: int | None = None
) -> AsyncIterator[str]:
    """Text as it comes, why each answer ended, and the usage where it is asked for."""

    def outputs() -> list[RequestOutput]:
        return [exchange.output for exchange in exchanges]

    try:
        async for one in patient(_merged(exchanges, interval or 1)):
            if one is None:
                yield PING
                continue
            number, delta = one
            for text in chunks.tell(number, delta, outputs):
                yield text
        for text in chunks.end(outputs()):
            yield text
    except RequestError as error:
        # The status line is gone already, so the error travels as an event.
        yield event(error.body)
    except Exception:
        log.exception("a stream failed")
        yield event(error_body(FAILED, status=500))
    finally:
        for exchange in exchanges:
            exchange.abort()
    yield DONE


async def _merged(exchanges: Sequence[Exchange], interval: int) -> AsyncGenerator[Numbered, None]:
    """The deltas of all prompts as they come, with the prompt's number."""
    if len(exchanges) == 1:
        async for delta in spaced(exchanges[0].deltas(), interval):
            yield 0, delta
        return
    # Of one place: what is not read yet is joined in the streams, not kept here.
    queue: asyncio.Queue[Numbered | BaseException | None] = asyncio.Queue(1)

    async def pump(number: int, exchange: Exchange) -> None:
        try:
            async for delta in spaced(exchange.deltas(), interval):
                await queue.put((number, delta))
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    pumps = [asyncio.ensure_future(pump(number, one)) for number, one in enumerate(exchanges)]
    try:
        left = len(pumps)
        while left:
            one = await queue.get()
            if isinstance(one, BaseException):
                raise one
            if one is None:
                left -= 1
            else:
                yield one
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
