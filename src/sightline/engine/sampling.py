"""How the next token is chosen, and when to stop: the settings of one request, named as vLLM names them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sightline.errors import UsageError

GREEDY_BELOW = 1e-5
"""Temperatures below this mean the most likely token, as in vLLM."""


@dataclass(frozen=True)
class SamplingParams:
    """Settings of one request; the names and defaults are vLLM's.

    Attributes:
        n: answers to the same prompt.
        temperature: 0 takes the most likely token.
        top_p: share of probability to sample from, above 0 and at most 1.
        top_k: number of most likely tokens to sample from; 0 or -1 means all.
        min_p: least probability, as a share of the most likely token's.
        repetition_penalty: above 1 makes tokens of the prompt and the answer less likely.
        max_tokens: longest answer; None means up to the model's length.
        min_tokens: no end before so many tokens.
        stop: texts that end the answer; they are left out of it.
        stop_token_ids: tokens that end the answer, beside the model's own end tokens.
        ignore_eos: go on after the model's own end tokens.
        seed: the same seed gives the same answer, whatever else runs beside it.
        skip_special_tokens: leave special tokens out of the text.

    Raises:
        UsageError: a value is of the wrong type or out of its range; the text names it.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: Sequence[str] | str | None = None
    stop_token_ids: Sequence[int] | None = field(default=None)
    ignore_eos: bool = False
    seed: int | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _strings(self.stop))
        object.__setattr__(self, "stop_token_ids", _ids(self.stop_token_ids))
        _whole("n", self.n, 1, 128)
        _real("temperature", self.temperature, 0, 100)
        _real("top_p", self.top_p, 0, 1, above=True)
        _whole("top_k", self.top_k, -1)
        _real("min_p", self.min_p, 0, 1)
        _real("repetition_penalty", self.repetition_penalty, 0, 100, above=True)
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1)
        _whole("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ParameterError("min_tokens", f"is {self.min_tokens}, above max_tokens {self.max_tokens}")
        if self.seed is not None:
            _whole("seed", self.seed, -(2**63), 2**63 - 1)

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(self.stop or ())

    @property
    def stop_ids(self) -> frozenset[int]:
        return frozenset(self.stop_token_ids or ())


class ParameterError(UsageError):
    """A sampling parameter that is wrong. `name` is the field, for an HTTP error to point at."""

    def __init__(self, name: str, fault: str) -> None:
        super().__init__(f"{name} {fault}")
        self.name = name


def _whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ParameterError(name, f"must be a whole number, not {value!r}")
    if value < least or (most is not None and value > most):
        limit = f"at least {least}" if most is None else f"between {least} and {most}"
        raise ParameterError(name, f"must be {limit}, not {value}")


def _real(name: str, value: Any, least: float, most: float, *, above: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ParameterError(name, f"must be a number, not {value!r}")
    # Written so that NaN fails too.
    if not (least < value <= most if above else least <= value <= most):
        words = f"above {least} and at most {most}" if above else f"between {least} and {most}"
        raise ParameterError(name, f"must be {words}, not {value}")


def _strings(value: Sequence[str] | str | None) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else tuple(value or ())
    if not all(isinstance(text, str) and text for text in texts):
        raise ParameterError("stop", "must be a text or a list of texts, none of them empty")
    return texts


def _ids(value: Sequence[int] | None) -> tuple[int, ...]:
    ids = tuple(value or ())
    for token in ids:
        _whole("stop_token_ids", token, 0)
    return ids
