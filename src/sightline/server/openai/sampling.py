"""A request's sampling settings: its own over the checkpoint's, within what one client may ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sightline.engine.sampling.params import ParameterError, SamplingParams
from sightline.server.errors import RequestError
from sightline.server.limits import Limits
from sightline.server.openai.fields import ChatRequest, CompletionRequest, Request
from sightline.server.openai.structured import Form

_SAME = (
    *("n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "min_tokens", "stop"),
    *("stop_token_ids", "ignore_eos", "seed", "skip_special_tokens", "spaces_between_special_tokens"),
    *("presence_penalty", "frequency_penalty", "logit_bias", "bad_words", "allowed_token_ids"),
    *("include_stop_str_in_output", "prompt_logprobs"),
)
_COMPLETION_TOKENS = 16  # of a completion without max_tokens, as OpenAI's protocol has it
MOST_ALLOWED = 65_536  # allowed_token_ids
_PRIORITIES = 2**31
_TOKEN_DIGITS = 10  # of a token id as text


def chat_sampling(
    request: ChatRequest, defaults: SamplingParams, limits: Limits, form: Form | None
) -> SamplingParams:
    """The settings of a chat request; without a limit its answer may be as long as the model allows.

    Raises:
        RequestError: a value is out of its range; its `param` names the field.
    """
    given = _common(request, limits)
    asked, name = request.max_completion_tokens, "max_completion_tokens"
    if asked is None:
        asked, name = request.max_tokens, "max_tokens"
    given["max_tokens"] = _length(asked, name, limits)
    if request.logprobs:
        given["logprobs"] = _logprobs("top_logprobs", request.top_logprobs or 0, limits)
    elif request.top_logprobs not in (None, 0):
        raise RequestError("top_logprobs needs logprobs to be true", param="top_logprobs")
    return _made(defaults, given, form, {"max_tokens": name, "logprobs": "top_logprobs"})


def completion_sampling(
    request: CompletionRequest, defaults: SamplingParams, limits: Limits, form: Form | None
) -> SamplingParams:
    """The settings of a completion request; as `chat_sampling`, but an answer has 16 tokens unless told.

    With echo max_tokens may be 0: then the prompt alone is told, and the one token that is computed is not.
    """
    given = _common(request, limits)
    asked = request.max_tokens
    if asked == 0 and request.echo:
        asked = 1
    given["max_tokens"] = _length(_COMPLETION_TOKENS if asked is None else asked, "max_tokens", limits)
    if request.logprobs is not None:
        given["logprobs"] = _logprobs("logprobs", request.logprobs, limits)
        if request.echo and request.prompt_logprobs is None:
            given["prompt_logprobs"] = given["logprobs"]
    return _made(defaults, given, form, {})


def truncation(request: Request, longest: int) -> int | None:
    """Most tokens of the prompt by `truncate_prompt_tokens`; -1 is what the model's length leaves.

    Raises:
        RequestError: it is out of its range.
    """
    asked = request.truncate_prompt_tokens
    if asked is None:
        return None
    if asked != -1 and not 1 <= asked < longest:
        raise RequestError(
            f"truncate_prompt_tokens must be -1, or between 1 and {longest - 1}, not {asked}",
            param="truncate_prompt_tokens",
        )
    return longest - 1 if asked == -1 else asked


def _common(request: Request, limits: Limits) -> dict[str, Any]:
    given = {name: value for name in _SAME if (value := getattr(request, name)) is not None}
    if request.do_sample is False:
        given["temperature"] = 0.0
    _check_lengths(request, limits)
    if request.n is not None and request.n > limits.max_n:
        raise RequestError(f"n may be {limits.max_n} at most, not {request.n}", param="n")
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise RequestError("best_of is supported only where it is n; leave it out", param="best_of")
    if request.length_penalty not in (None, 1.0):
        raise RequestError(
            "length_penalty is for beam search, which this server has not; leave it out",
            param="length_penalty",
        )
    if request.prompt_logprobs is not None:
        _logprobs("prompt_logprobs", request.prompt_logprobs, limits)
    for name, least, most in (("stream_interval", 1, 4096), ("priority", -_PRIORITIES, _PRIORITIES)):
        value = getattr(request, name)
        if value is not None and not least <= value <= most:
            raise RequestError(f"{name} must be between {least} and {most}, not {value}", param=name)
    if request.priority and not limits.priorities:
        raise RequestError(
            "priority works on a server with --priorities alone; leave it out, or send 0", param="priority"
        )
    if request.request_id is not None and not 0 < len(request.request_id) <= 256:
        raise RequestError("request_id must have 1 to 256 characters", param="request_id")
    return given


def _length(asked: int | None, name: str, limits: Limits) -> int | None:
    if limits.max_tokens is None:
        return asked
    if asked is not None and asked > limits.max_tokens:
        raise RequestError(
            f"{name} may be {limits.max_tokens} at most on this server, not {asked}", param=name
        )
    return limits.max_tokens if asked is None else asked


def _logprobs(name: str, asked: int, limits: Limits) -> int:
    if not 0 <= asked <= limits.max_logprobs:
        raise RequestError(f"{name} must be between 0 and {limits.max_logprobs}, not {asked}", param=name)
    return asked


def _made(
    defaults: SamplingParams, given: dict[str, Any], form: Form | None, names: dict[str, str]
) -> SamplingParams:
    if form is not None:
        given["structured_outputs"] = form.params
    try:
        return replace(defaults, **given)
    except ParameterError as error:
        name = names.get(error.name, error.name)
        raise RequestError(str(error).replace(error.name, name, 1), param=name) from error


def _check_lengths(request: Request, limits: Limits) -> None:
    stops = [request.stop] if isinstance(request.stop, str) else request.stop
    _check("stop", stops, limits.max_stops, "texts", limits.max_stop_length)
    _check("bad_words", request.bad_words, limits.max_bad_words, "texts", limits.max_stop_length)
    _check("stop_token_ids", request.stop_token_ids, limits.max_stop_ids, "ids")
    _check_biases(request.logit_bias or {}, limits)
    _check("allowed_token_ids", request.allowed_token_ids, MOST_ALLOWED, "ids")


def _check_biases(biases: Mapping[str, Any], limits: Limits) -> None:
    if len(biases) > limits.max_biases:
        raise RequestError(f"logit_bias may hold {limits.max_biases} tokens; give fewer", param="logit_bias")
    for token, bias in biases.items():
        # In the errors of neither stands what the client sent, which may be long.
        if len(token) > _TOKEN_DIGITS or not (token.isascii() and token.isdigit()):
            raise RequestError("logit_bias must have token ids as its names", param="logit_bias")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)):
            raise RequestError(f"logit_bias.{token} must be a number", param=f"logit_bias.{token}")


def _check(name: str, values: Sequence[Any] | None, most: int, what: str, longest: int | None = None) -> None:
    if not values:
        return
    if len(values) > most or (longest is not None and any(len(value) > longest for value in values)):
        each = "" if longest is None else f" of {longest} characters"
        raise RequestError(
            f"{name} may hold {most} {what}{each}; give fewer{' or shorter ones' if each else ''}", param=name
        )
