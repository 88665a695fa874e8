"""POST /generate with `inputs`, /generate_stream and /: TGI's form, as MindIE answers it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from sightline.engine.outputs import CompletionOutput, RequestOutput
from sightline.engine.stream import Delta
from sightline.server.errors import RequestError
from sightline.server.exchange import Events, Exchange, until_left
from sightline.server.mindie.errors import body_of
from sightline.server.mindie.fields import TGI, read_parameters
from sightline.server.mindie.prompts import read_question, truncated
from sightline.server.mindie.sampling import NEW_TOKENS, sampling_of, with_seed
from sightline.server.service import Service
from sightline.server.sse import event


@dataclass(frozen=True)
class Wishes:
    """What the answer to a request shall hold.

    Attributes:
        prefix: put before `generated_text`, for return_full_text.
        details, prompt_tokens: tell them.
    """

    seed: int
    prefix: str
    details: bool
    prompt_tokens: bool


async def generate(
    service: Service, http: Request, body: Mapping[str, Any], *, stream: bool, listed: bool = False
) -> Response:
    """Answer a request; `listed` puts the answer into a list, as POST / does.

    Raises:
        RequestError: it cannot be answered.
    """
    values = with_seed(read_parameters(body, TGI))
    if stream and values.get("decoder_input_details"):
        raise RequestError(
            "parameters.decoder_input_details works without a stream; leave it out",
            param="parameters.decoder_input_details",
        )
    question = read_question(service, body.get("inputs"), "inputs")
    params = sampling_of(
        values,
        service.defaults,
        service.limits,
        tokens=values.get("max_new_tokens", NEW_TOKENS),
        prefix="parameters.",
    )
    wishes = Wishes(
        seed=values["seed"],
        prefix=question.text if values.get("return_full_text") else "",
        details=values.get("details", False) or values.get("decoder_input_details", False),
        prompt_tokens=values.get("decoder_input_details", False),
    )

    async def answer() -> Response:
        asked = question
        if "truncate" in values:
            asked = await truncated(service, question, values["truncate"])
        model = adapter_of(values)
        exchange = await service.submit(asked.prompt, params, model=model, deltas=stream, where=asked.where)
        if stream:
            return Events(events(exchange, wishes), exchange)
        whole = _whole(await exchange.finished(), wishes)
        return JSONResponse([whole] if listed else whole)

    return await until_left(http, answer())


async def events(exchange: Exchange, wishes: Wishes) -> AsyncIterator[str]:
    """One event a token; the last one has the whole text."""
    try:
        async for delta in exchange.deltas():
            for value in _tokens(delta):
                yield event(value)
            if delta.finish_reason is not None:
                yield event(_last(delta, exchange.output, wishes))
    except RequestError as error:
        yield event(body_of(str(error), error.status))
    finally:
        exchange.abort()


def adapter_of(values: Mapping[str, Any]) -> str | None:
    """The model's name; MindIE's examples call the model itself "None"."""
    name = values.get("adapter_id")
    return None if name == "None" else name


def finish_reason_of(answer: CompletionOutput | Delta) -> str:
    """Why an answer ended, in TGI's words."""
    if answer.finish_reason == "length":
        return "length"
    return "eos_token" if answer.stop_reason is None else "stop_sequence"


def tokens_of(ids: list[int]) -> list[dict[str, Any]]:
    """Token ids as MindIE tells them: without their texts."""
    return [{"id": token, "logprob": None, "special": None, "text": None} for token in ids]


def _tokens(delta: Delta) -> list[dict[str, Any]]:
    """Events of a delta but for the one that ends the answer. A delta's text is told with its last token."""
    ids = delta.token_ids if delta.finish_reason is None else delta.token_ids[:-1]
    last = delta.finish_reason is None
    texts = [delta.text if last and place == len(ids) - 1 else "" for place in range(len(ids))]
    return [
        {"token": _token(token, text), "generated_text": None, "details": None}
        for token, text in zip(ids, texts, strict=True)
    ]


def _last(delta: Delta, output: RequestOutput, wishes: Wishes) -> dict[str, Any]:
    answer = output.outputs[0]
    token = delta.token_ids[-1] if delta.token_ids else None
    details = {"prompt_tokens": len(output.prompt_token_ids), **_ending(answer, wishes)}
    return {
        "token": _token(token, delta.text),
        "generated_text": wishes.prefix + answer.text,
        "details": details if wishes.details else None,
    }


def _token(token: int | None, text: str) -> dict[str, Any]:
    return {"id": token, "text": text, "logprob": None, "special": None}


def _ending(answer: CompletionOutput, wishes: Wishes) -> dict[str, Any]:
    return {
        "finish_reason": finish_reason_of(answer),
        "generated_tokens": len(answer.token_ids),
        "seed": wishes.seed,
    }


def _whole(output: RequestOutput, wishes: Wishes) -> dict[str, Any]:
    answer = output.outputs[0]
    text = {"generated_text": wishes.prefix + answer.text}
    if not wishes.details:
        return text
    details = {
        "prompt_tokens": len(output.prompt_token_ids),
        **_ending(answer, wishes),
        "prefill": tokens_of(output.prompt_token_ids) if wishes.prompt_tokens else [],
        "tokens": tokens_of(answer.token_ids),
    }
    return {"details": details, **text}
