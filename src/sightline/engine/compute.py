"""What a step brings: hidden states from the runner, tokens from the sampler, and who fails when something breaks.

Nothing is written into an answer before all tokens of the step are chosen. So a step that breaks is computed again,
one sequence at a time, and only what breaks alone fails: a picture that cannot be encoded fails those who show it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sightline.engine.sampling.answer import decode_logprobs
from sightline.engine.sampling.logprobs import prompt_logprobs
from sightline.engine.scheduling.step import Chunk, Step
from sightline.errors import SightlineError, first_line
from sightline.hardware.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    import torch

    from sightline.engine.record import Record
    from sightline.engine.sampling.sampler import Choice
    from sightline.engine.scheduling.request import Request
    from sightline.engine.scheduling.sequence import Sequence
    from sightline.engine.stats import Totals

log = logging.getLogger("sightline.engine")

# Rows of a prompt whose logits are computed together for its log probabilities: 32 of 152k float32 are 20 MB.
_ROWS = 32


@dataclass
class Outcome:
    """Of one step: the tokens that each sequence takes on, and why a request fails."""

    accepted: dict[Sequence, list[int]] = field(default_factory=dict)
    faults: dict[Request, str] = field(default_factory=dict)


class Computer:
    """Computes steps; see `EngineCore` for its parts.

    Args:
        records: of the requests in the engine, by id.
    """

    def __init__(
        self,
        runner: Any,
        sampler: Any,
        features: Any,
        *,
        records: Mapping[str, Record],
        totals: Totals,
        tokenizer: Any,
        free_memory: Callable[[], None],
    ) -> None:
        self._runner = runner
        self._sampler = sampler
        self._features = features
        self._records = records
        self._totals = totals
        self._tokenizer = tokenizer
        self._free_memory = free_memory

    def compute(self, step: Step) -> Outcome:
        """Run a step, choose its tokens and hand them to the answers. What fails is an outcome, not an error."""
        outcome = Outcome()
        for chunk, choices in self._choose(step, outcome):
            sequence = chunk.sequence
            if sequence.request in outcome.faults:
                continue
            try:
                outcome.accepted[sequence] = self._accept(chunk, choices)
            except Exception as error:
                log.exception("the answer to request %s failed", sequence.request.id)
                outcome.faults[sequence.request] = sentence(error)
            if sequence.answer.error is not None:  # its logits were nan
                outcome.faults[sequence.request] = sequence.answer.error
        return outcome

    def _choose(self, step: Step, outcome: Outcome) -> list[tuple[Chunk, list[Choice]]]:
        """The tokens of a step, if need be of each of its chunks alone."""
        try:
            return self._run(step)
        except Exception as error:
            log.exception("a step of %d tokens and %d sequences failed", step.tokens, len(step.chunks))
            fault = sentence(error)
        self._free_memory()
        if len(step.chunks) == 1:
            outcome.faults[step.chunks[0].sequence.request] = fault
            return []
        chosen: list[tuple[Chunk, list[Choice]]] = []
        for chunk in step.chunks:
            request = chunk.sequence.request
            if request not in outcome.faults:
                chosen += self._choose(Step([chunk], self._unseen(chunk)), outcome)
        return chosen

    def _unseen(self, chunk: Chunk) -> list[tuple[Request, int]]:
        """The chunk's media that have no features yet."""
        request = chunk.sequence.request
        return [
            (request, index)
            for index in chunk.sequence.pinned
            if not self._features.has(request.media[index].key)
        ]

    def _run(self, step: Step) -> list[tuple[Chunk, list[Choice]]]:
        """Run a step and choose its tokens. Answers stay as they are, so that it may be done again."""
        hidden = self._runner.run(step)
        self._count_encoding(step)
        rows: list[int] = []
        sampling: list[Chunk] = []
        start = 0
        for chunk in step.chunks:
            end = start + len(chunk.tokens)
            if chunk.sequence.request.logs_prompt and chunk.sequence.index == 0:
                self._score_prompt(chunk, hidden[start:end])
            if chunk.samples:
                sampling.append(chunk)
                rows += range(end - chunk.drafts - 1, end)
            start = end
        if not sampling:
            return []
        # A step of decodes needs all of its rows, which then need not be copied.
        logits = self._runner.logits(hidden if len(rows) == hidden.shape[0] else hidden[rows])
        runs = [
            (chunk.sequence.answer, chunk.tokens[len(chunk.tokens) - chunk.drafts :]) for chunk in sampling
        ]
        return list(zip(sampling, self._sampler.choose_runs(logits, runs), strict=True))

    def _accept(self, chunk: Chunk, choices: list[Choice]) -> list[int]:
        """Hand chosen tokens to the answer, up to the one that ends it."""
        answer = chunk.sequence.answer
        tokens = []
        for choice in choices:
            goes_on = answer.accept(choice)
            if choice.fault is None:
                tokens.append(choice.token)
            if not goes_on:
                break
        self._totals.drafts += chunk.drafts > 0
        self._totals.drafted += chunk.drafts
        self._totals.accepted += max(0, len(tokens) - 1)
        return tokens

    def _score_prompt(self, chunk: Chunk, hidden: torch.Tensor) -> None:
        """Log probabilities of the prompt's tokens that the rows of a chunk foretell."""
        sequence = chunk.sequence
        record = self._records[sequence.request.id]
        if record.prompt_logprobs is None:
            record.prompt_logprobs = [None] * sequence.prompt_length
        last = min(chunk.start + len(hidden), sequence.prompt_length - 1)
        for start in range(chunk.start, last, _ROWS):
            end = min(last, start + _ROWS)
            logits = self._runner.logits(hidden[start - chunk.start : end - chunk.start])
            following = sequence.request.prompt[start + 1 : end + 1]
            count = sequence.request.params.prompt_logprobs or 0
            found = prompt_logprobs(logits, following, count)
            for top in found:
                decode_logprobs(top, self._tokenizer if sequence.request.params.detokenize else None)
            record.prompt_logprobs[start + 1 : end + 1] = found

    def _count_encoding(self, step: Step) -> None:
        seconds = float(getattr(self._runner, "encode_seconds", 0.0))
        rows = sum(request.media[index].tokens for request, index in step.encode)
        for request, index in step.encode:
            self._records[request.id].encode += seconds * request.media[index].tokens / max(1, rows)


def sentence(error: Exception) -> str:
    """Why a request failed, for its caller."""
    if isinstance(error, SightlineError):
        return str(error)
    kind, text = type(error).__name__, first_line(error)
    if is_out_of_memory(error):
        return (
            f"the step that computed this request ran out of memory ({text}); lower max_num_batched_tokens, "
            "max_pixels or gpu_memory_utilization"
        )
    return f"the step that computed this request failed: {kind}: {text}"
