"""POST /v2/models/{model}/generate and generate_stream: Triton's form, as MindIE answers it."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from sightline.engine.outputs import CompletionOutput
from sightline.engine.stream import Delta
from sightline.server.errors import RequestError
from sightline.server.exchange import Events, Exchange, until_left
from sightline.server.mindie.errors import body_of
from sightline.server.mindie.fields import TRITON, Field, read_fields, read_parameters
from sightline.server.mindie.infer import priority_of
from sightline.server.mindie.prompts import read_question
from sightline.server.mindie.sampling import NEW_TOKENS, sampling_of, with_seed
from sightline.server.mindie.tgi import finish_reason_of
from sightline.server.service import Service

_ID = re.compile(r"[A-Za-z0-9_-]{1,256}", re.ASCII)


async def generate(
    service: Service, http: Request, model: str, body: Mapping[str, Any], *, stream: bool
) -> Response:
    """Answer a request about `text_input`.

    Raises:
        RequestError: it cannot be answered.
    """
    service.names.find(model)
    name = read_fields(body, (Field("id", "text"),)).get("id")
    if name is not None and not _ID.fullmatch(name):
        raise RequestError("id may hold 256 letters, digits, - and _", param="id")
    values = with_seed(read_parameters(body, TRITON))
    question = read_question(service, body.get("text_input"), "text_input")
    params = sampling_of(
        values,
        service.defaults,
        service.limits,
        tokens=values.get("max_new_tokens", NEW_TOKENS),
        prefix="parameters.",
    )
    head = {"id": name or uuid.uuid4().hex, "model_name": model, "model_version": None}
    details = values.get("details", False)

    async def answer() -> Response:
        exchange = await service.submit(
            question.prompt,
            params,
            model=model,
            deltas=stream,
            priority=priority_of(values, service.limits),
            where=question.where,
        )
        if stream:
            return Events(events(exchange, head, details), exchange)
        told = (await exchange.finished()).outputs[0]
        whole = {**head, "text_output": told.text}
        return JSONResponse({**whole, "details": _details(told, len(told.token_ids))} if details else whole)

    return await until_left(http, answer())


async def events(exchange: Exchange, head: Mapping[str, Any], details: bool) -> AsyncIterator[str]:
    """An event for each piece of text, written without a blank behind `data:` as MindIE writes them."""
    tokens = 0  # counted here: to ask for the whole answer at each delta would build it each time
    try:
        async for delta in exchange.deltas():
            tokens += len(delta.token_ids)
            if not delta.text and delta.finish_reason is None:
                continue
            value = {**head, "text_output": delta.text}
            if details:
                value["details"] = _details(delta, tokens)
            yield _event(value)
    except RequestError as error:
        yield _event(body_of(str(error), error.status))
    finally:
        exchange.abort()


def _event(value: Mapping[str, Any]) -> str:
    return f"data:{json.dumps(value, ensure_ascii=False)}\n\n"


def _details(answer: CompletionOutput | Delta, tokens: int) -> dict[str, Any]:
    ending = {} if answer.finish_reason is None else {"finish_reason": finish_reason_of(answer)}
    return {
        **ending,
        "generated_tokens": tokens,
        "first_token_cost": None,
        "decode_cost": None,
    }
