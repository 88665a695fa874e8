"""One answer as it grows: tokens become text, and something among them ends it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from sightline.engine.outputs import CompletionOutput, Logprob
from sightline.engine.sampling.detokenizer import Detokenizer
from sightline.engine.sampling.params import SamplingParams
from sightline.engine.sampling.rules import Rules, bad_word_tokens
from sightline.engine.sampling.structured.matcher import Matcher

if TYPE_CHECKING:
    from sightline.engine.sampling.sampler import Choice


class Answer:
    """One answer to a prompt.

    Args:
        end_tokens: the model's own end tokens.
        limit: most tokens of the answer, by `max_tokens` and the model's length.
        prompt_tokens: for the repetition penalty.
        seed: of the answer's own random numbers.
        structure: at the start of the form that was asked for, for this answer alone; None for free text.

    Attributes:
        text: the text as it comes; `text.take()` gives what is new and decided.
        rules: what its past and its settings say about the next token.
        draws: its random numbers.
        error: why there could be no further token; `finish_reason` is "error" then.
        forbidden: its own settings are why.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        index: int = 0,
        end_tokens: Iterable[int] = (),
        limit: int,
        tokenizer: Any,
        prompt_tokens: Sequence[int] = (),
        seed: int,
        structure: Matcher | None = None,
    ) -> None:
        self.params = params
        self.error: str | None = None
        self.forbidden = False
        self.text = Detokenizer(
            tokenizer,
            stops=params.stops,
            keep_stop=params.include_stop_str_in_output,
            skip_special_tokens=params.skip_special_tokens,
            spaces_between_special_tokens=params.spaces_between_special_tokens,
        )
        self.draws = Draws(seed)
        # A form ends with an end token, which the rules keep back from a request that wants none of them.
        self._ends = frozenset() if params.ignore_eos and structure is None else frozenset(end_tokens)
        self.rules = Rules(
            params,
            prompt=prompt_tokens,
            ends=self._ends | params.stop_ids,
            bad_words=bad_word_tokens(params.bad_words or (), tokenizer),
            structure=structure,
        )
        self._limit = limit
        self._tokenizer = tokenizer
        self._output = CompletionOutput(index)
        self._logprobs: list[dict[int, Logprob]] = []
        if params.logprobs is not None:
            self._output.cumulative_logprob, self._output.logprobs = 0.0, self._logprobs

    @property
    def output(self) -> CompletionOutput:
        """The answer so far; always the same object, whose text is brought up to date here."""
        self._output.text = self.text.text
        return self._output

    @property
    def finished(self) -> bool:
        return self._output.finish_reason is not None

    def accept(self, choice: Choice) -> bool:
        """Take one chosen token, and see whether it ends the answer. Returns whether the answer goes on."""
        if choice.fault is not None:
            self.error, self.forbidden = choice.fault, choice.forbidden
            self.finish("error")
            return False
        self._output.token_ids.append(choice.token)
        self.rules.push(choice.token)
        if self.params.logprobs is not None:
            self._note(choice)
        self._see(choice.token)
        return not self.finished

    def finish(self, reason: str, stop: int | str | None = None) -> None:
        """End the answer: "stop", "length", "abort" or "error"; `stop` is the text or token that did it."""
        self.text.finish(cut=reason != "stop")
        self._output.finish_reason, self._output.stop_reason = reason, stop

    def _see(self, token: int) -> None:
        if token in self.params.stop_ids or token in self._ends:
            if self.params.include_stop_str_in_output:
                self._add(token)
            return self.finish("stop", token if token in self.params.stop_ids else None)
        stop = self._add(token)
        if stop is not None:
            self.finish("stop", stop)
        elif self.rules.structure is not None and self.rules.structure.astray:
            self._leave(self.rules.structure.error)
        elif self.rules.structure is not None and self.rules.structure.complete:
            self.finish("stop")
        elif len(self._output.token_ids) >= self._limit:
            self.finish("length")

    def _leave(self, cause: str | None) -> None:
        """End it: the token was allowed a moment ago, but behind it the form holds more than can be followed."""
        self.error = "the answer left the form that structured_outputs asks for; make that simpler"
        if cause is not None:
            self.error = f"structured_outputs cannot be followed any further: {cause}; make it simpler"
            self.forbidden = True
        self.finish("error")

    def _add(self, token: int) -> str | None:
        if not self.params.detokenize:
            return None
        return self.text.add(token, may_stop=len(self._output.token_ids) >= self.params.min_tokens)

    def _note(self, choice: Choice) -> None:
        top = choice.top or {}
        decode_logprobs(top, self._tokenizer if self.params.detokenize else None)
        self._logprobs.append(top)
        self._output.cumulative_logprob = (self._output.cumulative_logprob or 0.0) + (choice.logprob or 0.0)


class Draws:
    """Random numbers of one answer, looked at ahead of their use: a drafted token that is not taken uses none."""

    def __init__(self, seed: int) -> None:
        # Without a sign, which random.Random leaves out: -1 and 1 are different seeds.
        self._generator = random.Random(seed % 2**64)
        self._numbers: list[float] = []

    def ahead(self, count: int) -> list[float]:
        """The next `count` numbers of [0, 1)."""
        while len(self._numbers) < count:
            self._numbers.append(self._generator.random())
        return self._numbers[:count]

    def use(self, count: int) -> None:
        """The next `count` numbers were used."""
        del self._numbers[:count]


def decode_logprobs(top: dict[int, Logprob], tokenizer: Any | None) -> None:
    """Give each entry its token's text; without a tokenizer none has one."""
    if tokenizer is not None:
        for token, entry in top.items():
            entry.decoded_token = tokenizer.decode([token])
