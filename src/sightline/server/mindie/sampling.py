"""Settings of MindIE's requests as the engine's."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sightline.engine.sampling.params import ParameterError, SamplingParams
from sightline.server.errors import RequestError
from sightline.server.limits import Limits

NEW_TOKENS = 20
"""What TGI gives a request that says nothing."""

_SAME = (
    *("temperature", "top_k", "top_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("seed", "stop", "stop_token_ids", "ignore_eos", "include_stop_str_in_output", "skip_special_tokens"),
)


def sampling_of(
    values: Mapping[str, Any],
    defaults: SamplingParams,
    limits: Limits,
    *,
    tokens: int | None,
    n: int = 1,
    scored: bool = False,
    prefix: str = "",
) -> SamplingParams:
    """The settings of one request over the checkpoint's `defaults`.

    Whether to sample is decided as MindIE decides it: as `do_sample` says; without it where temperature, top_k or
    top_p is given; else as the checkpoint recommends, and greedily where it recommends nothing.

    Args:
        values: as `read_fields` gives them.
        tokens: longest answer, cut to the server's limit; None is what the model's length leaves.
        n: answers.
        scored: tell the answers' probabilities, to choose the best of them.
        prefix: of the fields' names in errors.

    Raises:
        RequestError: more than the server's limits allow, or a value that the engine does not take.
    """
    given = {name: values[name] for name in _SAME if name in values}
    asks = any(name in values for name in ("temperature", "top_k", "top_p"))
    if not values.get("do_sample", asks or defaults != SamplingParams()):
        given["temperature"] = 0.0
    given["max_tokens"] = _capped(tokens, limits.max_iter_times or limits.max_tokens)
    _check_limits(given, n, limits, prefix)
    try:
        return replace(defaults, **given, n=n, logprobs=0 if scored else None)
    except ParameterError as error:
        where = prefix + (error.name if error.name != "max_tokens" or not prefix else "max_new_tokens")
        raise RequestError(f"{prefix}{error}", param=where) from error


def with_seed(values: Mapping[str, Any]) -> dict[str, Any]:
    """With a random seed where none is given: these forms tell the client which it was."""
    return {"seed": random.randrange(2**31), **values}


def _capped(tokens: int | None, most: int | None) -> int | None:
    """MindIE cuts to maxIterTimes what asks for more."""
    return tokens if most is None else min(tokens or most, most)


def _check_limits(given: Mapping[str, Any], n: int, limits: Limits, prefix: str) -> None:
    if n > limits.max_n:
        raise RequestError(f"n and best_of may be at most {limits.max_n}, not {n}", param="n")
    stop = given.get("stop")
    texts = [stop] if isinstance(stop, str) else stop or []
    if len(texts) > limits.max_stops or any(len(text) > limits.max_stop_length for text in texts):
        raise RequestError(
            f"{prefix}stop may hold {limits.max_stops} texts of {limits.max_stop_length} characters; give fewer or "
            "shorter ones",
            param=f"{prefix}stop",
        )
    if len(given.get("stop_token_ids") or []) > limits.max_stop_ids:
        raise RequestError(
            f"stop_token_ids may hold {limits.max_stop_ids} ids; give fewer", param="stop_token_ids"
        )
