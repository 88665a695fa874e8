"""POST /infer and /infer_token: MindIE's own form."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from sightline.server.errors import RequestError
from sightline.server.exchange import Events, Exchange, until_left
from sightline.server.limits import Limits
from sightline.server.mindie.errors import body_of
from sightline.server.mindie.fields import INFER, Field, read_fields, read_parameters
from sightline.server.mindie.prompts import read_ids, read_question
from sightline.server.mindie.sampling import NEW_TOKENS, sampling_of, with_seed
from sightline.server.mindie.tgi import finish_reason_of
from sightline.server.service import Service
from sightline.server.sse import event

STREAM = Field("stream", "flag")


async def infer(service: Service, http: Request, body: Mapping[str, Any]) -> Response:
    """Answer a request about `inputs` or `input_id` (token ids).

    Raises:
        RequestError: it cannot be answered.
    """
    begun = time.perf_counter()
    if "inputs" in body and "input_id" in body:
        raise RequestError("the body has inputs and input_id; give one of them", param="inputs")
    stream = read_fields(body, (STREAM,)).get("stream", False)
    values = with_seed(read_parameters(body, INFER))
    ids = body.get("input_id")
    question = (
        read_question(service, body.get("inputs"), "inputs")
        if ids is None
        else read_ids(service, ids, "input_id")
    )
    params = sampling_of(
        values,
        service.defaults,
        service.limits,
        tokens=values.get("max_new_tokens", NEW_TOKENS),
        prefix="parameters.",
    )

    async def answer() -> Response:
        exchange = await service.submit(
            question.prompt,
            params,
            deltas=stream,
            priority=priority_of(values, service.limits),
            where=question.where,
        )
        if stream:
            return Events(events(exchange, values, begun), exchange)
        told = (await exchange.finished()).outputs[0]
        whole: dict[str, Any] = {"generated_text": told.text}
        if values.get("details"):
            whole["details"] = {
                "finish_reason": finish_reason_of(told),
                "generated_tokens": len(told.token_ids),
                "generated_token_ids": told.token_ids,
                "seed": values["seed"],
            }
        return JSONResponse(whole)

    return await until_left(http, answer())


async def events(exchange: Exchange, values: Mapping[str, Any], begun: float) -> AsyncIterator[str]:
    """An event for each piece of text, with the milliseconds since the one before; the last has the whole text."""
    clock = Clock(begun)
    try:
        async for delta in exchange.deltas():
            told = delta.text if delta.finish_reason is None or delta.text else None
            if delta.text or delta.finish_reason is None:
                yield event({**clock.times(), "token": {"id": delta.token_ids, "text": told}})
            if delta.finish_reason is None:
                continue
            details = {
                "finish_reason": finish_reason_of(delta),
                "generated_tokens": len(exchange.output.outputs[0].token_ids),
                "seed": values["seed"],
            }
            yield event(
                {
                    **clock.times(),
                    "generated_text": exchange.output.outputs[0].text,
                    "details": details if values.get("details") else None,
                    "token": {"id": [] if delta.text else delta.token_ids, "text": None},
                }
            )
    except RequestError as error:
        yield event(body_of(str(error), error.status))
    finally:
        exchange.abort()


def priority_of(values: Mapping[str, Any], limits: Limits) -> int:
    """MindIE's priorities are 1 to 5, 5 where nothing is said; the engine's 0 is nothing said, and less is earlier.

    Where requests may not have any it is ignored, not refused: MindIE's clients send it out of habit.
    """
    return int(values.get("priority", 5)) - 5 if limits.priorities else 0


class Clock:
    """Milliseconds to the first piece, and between the others."""

    def __init__(self, begun: float) -> None:
        self._last = begun
        self._first = True

    def times(self) -> dict[str, float | None]:
        now = time.perf_counter()
        passed = round((now - self._last) * 1000, 2)
        self._last, first = now, self._first
        self._first = False
        return {"prefill_time": passed if first else None, "decode_time": None if first else passed}
