"""How the next token is chosen, and when to stop: the settings of one request, named as vLLM names them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sightline.engine.sampling.parameter_error import ParameterError
from sightline.engine.sampling.structured.params import StructuredOutputsParams

GREEDY_BELOW = 1e-5
"""Temperatures below this mean the most likely token, as in vLLM."""
MOST_LOGPROBS = 20
"""Most likely tokens that may be asked for with their log-probabilities; -1 asks for the whole vocabulary."""


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
        seed: the same seed draws the same random numbers, whatever else runs beside it. In float32 without
            quantization that gives the same answer; elsewhere logits differ a little with the batch, and where two
            tokens are about as likely an answer may take the other one.
        skip_special_tokens: leave special tokens out of the text.
        presence_penalty: taken from the logit of every token that the answer holds, -2 to 2.
        frequency_penalty: the same for each time the answer holds it, -2 to 2.
        logprobs: tell each token's log-probability and those of so many most likely ones; -1 means all.
        prompt_logprobs: the same for the tokens of the prompt.
        logit_bias: added to the logits of these tokens, -100 to 100.
        bad_words: texts that the answer does not hold; the last token of each is banned where it would complete it.
        allowed_token_ids: the only tokens to choose from.
        include_stop_str_in_output: leave the stop text (or stop token's text) in the answer.
        detokenize: False gives token ids only, with an empty text.
        spaces_between_special_tokens: put spaces around special tokens, where the tokenizer knows this setting.
        structured_outputs: the form of the answer; StructuredOutputsParams or a mapping of its fields. It ends where
            its form is complete, whatever min_tokens and ignore_eos say.

    Raises:
        ParameterError: a value is of the wrong type or out of its range; the text names it.
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
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    bad_words: Sequence[str] | None = None
    allowed_token_ids: Sequence[int] | None = None
    include_stop_str_in_output: bool = False
    detokenize: bool = True
    spaces_between_special_tokens: bool = True
    structured_outputs: StructuredOutputsParams | None = None

    def __post_init__(self) -> None:
        self._normalise()
        _whole("n", self.n, 1, 128)
        _real("temperature", self.temperature, 0, 100)
        _real("top_p", self.top_p, 0, 1, above=True)
        _whole("top_k", self.top_k, -1)
        _real("min_p", self.min_p, 0, 1)
        _real("repetition_penalty", self.repetition_penalty, 0, 100, above=True)
        _real("presence_penalty", self.presence_penalty, -2, 2)
        _real("frequency_penalty", self.frequency_penalty, -2, 2)
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1)
        _whole("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ParameterError("min_tokens", f"is {self.min_tokens}, above max_tokens {self.max_tokens}")
        if self.seed is not None:
            _whole("seed", self.seed, -(2**63), 2**63 - 1)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), -1, MOST_LOGPROBS)
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise ParameterError(name, f"must be True or False, not {getattr(self, name)!r}")
        if self.stop and not self.detokenize:
            raise ParameterError(
                "stop", "needs the answer's text; leave detokenize True or use stop_token_ids"
            )

    def _normalise(self) -> None:
        """Take each spelling of a list; what is kept is read-only and is accepted again by `replace`."""
        object.__setattr__(self, "stop", _strings("stop", self.stop))
        object.__setattr__(self, "stop_token_ids", _ids("stop_token_ids", self.stop_token_ids))
        if self.bad_words is not None:
            object.__setattr__(self, "bad_words", _strings("bad_words", self.bad_words))
        if self.allowed_token_ids is not None:
            ids = _ids("allowed_token_ids", self.allowed_token_ids)
            if not ids:
                raise ParameterError("allowed_token_ids", "is empty, so no token could come; leave it out")
            object.__setattr__(self, "allowed_token_ids", ids)
        if self.logit_bias is not None:
            object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        if self.structured_outputs is not None:
            form = StructuredOutputsParams.of(self.structured_outputs)
            object.__setattr__(self, "structured_outputs", form)

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(self.stop or ())

    @property
    def stop_ids(self) -> frozenset[int]:
        return frozenset(self.stop_token_ids or ())

    def check_vocabulary(self, size: int) -> None:
        """Refuse token ids that a model of `size` tokens does not have.

        Raises:
            ParameterError: names the setting and the largest id.
        """
        for name in ("stop_token_ids", "logit_bias", "allowed_token_ids"):
            if any(token >= size for token in getattr(self, name) or ()):
                raise ParameterError(name, f"must lie between 0 and {size - 1}")


_FLAGS = (
    "ignore_eos",
    "skip_special_tokens",
    "include_stop_str_in_output",
    "detokenize",
    "spaces_between_special_tokens",
)


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


def _strings(name: str, value: Any) -> tuple[str, ...]:
    texts = _listed(name, (value,) if isinstance(value, str) else value, "texts")
    if not all(isinstance(text, str) and text for text in texts):
        raise ParameterError(name, "must be a text or a list of texts, none of them empty")
    return texts


def _ids(name: str, value: Any) -> tuple[int, ...]:
    ids = _listed(name, value, "token ids")
    for token in ids:
        _whole(name, token, 0)
    return ids


def _listed(name: str, value: Any, what: str) -> tuple[Any, ...]:
    try:
        return tuple(value or ())
    except TypeError:
        raise ParameterError(name, f"must be a list of {what}, not {value!r}") from None


def _biases(value: Any) -> dict[int, float]:
    """JSON has no numbers as keys, so OpenAI's clients write the ids as texts."""
    if not isinstance(value, Mapping):
        raise ParameterError("logit_bias", f"must map token ids to numbers, not be {value!r}")
    biases = {}
    for key, bias in value.items():
        token = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() else key
        _whole("logit_bias", token, 0)
        _real("logit_bias", bias, -100, 100)
        biases[token] = float(bias)
    return biases
