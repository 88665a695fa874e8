"""POST /generate with a `prompt`: the form that vLLM's first server spoke, as MindIE answers it.

An answer is {"text": ["<prompt> <completion>"]}; a stream is one JSON object after the other, each ended by a NUL byte
and without the prompt.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from sightline.engine.outputs import CompletionOutput
from sightline.server.errors import RequestError
from sightline.server.exchange import Events, Exchange, until_left
from sightline.server.mindie.errors import body_of
from sightline.server.mindie.fields import VLLM, read_fields
from sightline.server.mindie.prompts import read_question
from sightline.server.mindie.sampling import sampling_of
from sightline.server.service import Service


@dataclass(frozen=True)
class Count:
    """Answers that are told (`n`), and those that are made to choose them from (`best_of`)."""

    n: int
    best_of: int

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Count:
        """As MindIE reads the two fields: with best_of alone, all of its answers are told.

        Raises:
            RequestError: they contradict each other, or ask for several answers that would all be the same.
        """
        best_of = values.get("best_of", values.get("n", 1))
        n = values.get("n", best_of)
        if best_of < n:
            raise RequestError(f"best_of is {best_of}, below n {n}; raise it", param="best_of")
        if best_of > n and values.get("stream"):
            raise RequestError(
                f"best_of is {best_of} and n {n}, but which are best is not known in a stream; make them equal",
                param="best_of",
            )
        if best_of > 1 and (values.get("temperature") == 0 or values.get("do_sample") is False):
            raise RequestError(
                f"{best_of} answers without sampling would all be the same; set temperature above 0 or leave out n "
                "and best_of",
                param="n",
            )
        return cls(n, best_of)


async def generate(service: Service, http: Request, body: Mapping[str, Any], *, full_text: bool) -> Response:
    """Answer a request; `full_text` makes every piece of a stream hold the answer from its beginning.

    Raises:
        RequestError: it cannot be answered.
    """
    values = read_fields(body, VLLM)
    count = Count.of(values)
    question = read_question(service, body.get("prompt"), "prompt")
    params = sampling_of(
        values,
        service.defaults,
        service.limits,
        tokens=values.get("max_tokens"),
        n=count.best_of,
        scored=count.best_of > count.n,
    )

    async def answer() -> Response:
        exchange = await service.submit(
            question.prompt,
            params,
            model=values.get("model"),
            deltas=values.get("stream", False),
            where=question.where,
        )
        if values.get("stream"):
            return Events(pieces(exchange, count.n, full_text=full_text), exchange)
        answers = _best((await exchange.finished()).outputs, count)
        return JSONResponse({"text": [f"{question.text} {one.text}" for one in answers]})

    return await until_left(http, answer())


async def pieces(exchange: Exchange, n: int, *, full_text: bool) -> AsyncIterator[str]:
    """A stream's pieces; each has an entry for every answer, empty where nothing was added to it."""
    whole = [""] * n
    try:
        async for delta in exchange.deltas():
            if not delta.text and delta.finish_reason is None:
                continue
            whole[delta.index] += delta.text
            added = ["" if index != delta.index else delta.text for index in range(n)]
            yield _piece({"text": list(whole) if full_text else added})
    except RequestError as error:
        # The status line is gone already, so the error travels as a piece.
        yield _piece(body_of(str(error), error.status))
    finally:
        exchange.abort()


def _piece(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\0"


def _best(answers: list[CompletionOutput], count: Count) -> list[CompletionOutput]:
    """The most likely answers first, where there is a choice."""
    if count.best_of == count.n:
        return answers
    scores = {answer.index: answer.cumulative_logprob or 0.0 for answer in answers}
    return sorted(answers, key=lambda answer: -scores[answer.index])[: count.n]
