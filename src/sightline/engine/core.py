"""One step after another: what the scheduler decides, the runner computes and the sampler chooses, put together.

Used by one thread at a time. A request that fails takes nothing with it: its blocks go back, the others go on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from sightline.engine.outputs import RequestOutput
from sightline.engine.record import Preparation, Record
from sightline.engine.sampling.answer import decode_logprobs
from sightline.engine.sampling.logprobs import prompt_logprobs
from sightline.engine.sampling.speculation import NgramIndex
from sightline.engine.stats import CacheUse, Stats, Totals
from sightline.errors import SightlineError, first_line

if TYPE_CHECKING:
    import torch

    from sightline.engine.sampling.sampler import Choice
    from sightline.engine.scheduling.request import Request
    from sightline.engine.scheduling.scheduler import Chunk, Step
    from sightline.engine.scheduling.sequence import Sequence
    from sightline.engine.settings import EngineSettings

log = logging.getLogger("sightline.engine")

# Rows of a prompt whose logits are computed together for its log probabilities: 32 of 152k float32 are 20 MB.
_ROWS = 32


class EngineCore:
    """Requests in, tokens out.

    Args:
        runner: runs a `Step` on the model; `run` gives hidden states [tokens, H], `logits` takes rows of them.
        scheduler, pool, features: as `sightline.engine.assembly` builds them.
        free_memory: gives a device's unused memory back after a step that failed.
    """

    def __init__(
        self,
        runner: Any,
        scheduler: Any,
        sampler: Any,
        *,
        pool: Any,
        features: Any,
        settings: EngineSettings,
        tokenizer: Any = None,
        free_memory: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self.totals = Totals()
        self._runner = runner
        self._scheduler = scheduler
        self._sampler = sampler
        self._pool = pool
        self._features = features
        self._tokenizer = tokenizer
        self._free_memory = free_memory
        self._records: dict[str, Record] = {}

    # Requests

    def add(self, request: Request, preparation: Preparation | None = None) -> None:
        """Take a prepared request on.

        Raises:
            UsageError: it can never fit; the text says what is too large and which setting limits it.
        """
        if request.id in self._records:
            raise SightlineError(f"there is a request {request.id!r} already; give each its own id")
        self._scheduler.add(request)
        self._records[request.id] = Record(request, preparation or Preparation(given=request.arrived_at))

    def abort(self, request_id: str) -> None:
        """End a request before the next step; nothing happens where it is not there."""
        if request_id in self._records:
            self._records[request_id].request.abort()

    def forget(self, request_id: str) -> None:
        """Drop what is kept for the output of a request that has ended."""
        self._records.pop(request_id, None)

    @property
    def has_work(self) -> bool:
        return bool(self._scheduler.has_work)

    @property
    def running(self) -> int:
        """Sequences that are computed now."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """Sequences that are not computed yet, or not now."""
        return len(self._scheduler.waiting)

    @property
    def waiting_tokens(self) -> int:
        return sum(sequence.pending for sequence in self._scheduler.waiting)

    def output(self, request: Request) -> RequestOutput:
        """A request's answers as they are now."""
        return self._records[request.id].output()

    # Steps

    def step(self) -> list[Sequence]:
        """Compute once; give the sequences with new tokens, and those that have ended."""
        begun = time.perf_counter()
        self._propose_drafts()
        step = self._scheduler.schedule()
        self.totals.preemptions += len(step.preempted)
        changed = [sequence for request in step.aborted for sequence in request.sequences]
        if not step.chunks:
            return self._count_ended(changed)
        try:
            accepted = self._compute(step)
            self._scheduler.commit(step, accepted)
            changed += [*accepted, *self._fail_spoilt(accepted)]
        except Exception as error:
            log.exception("a step of %d tokens failed", step.tokens)
            requests = {chunk.sequence.request.id: chunk.sequence.request for chunk in step.chunks}
            changed += self._fail(requests.values(), _sentence(error))
            self._free_memory()
        self.totals.steps += 1
        self.totals.step_seconds += time.perf_counter() - begun
        return self._count_ended(list(dict.fromkeys(changed)))

    def close(self) -> list[Sequence]:
        """Abort every request, without a step; give their sequences."""
        requests = [record.request for record in self._records.values() if not record.request.finished]
        return self._count_ended(
            [sequence for request in requests for sequence in self._end(request, "abort")]
        )

    def _end(self, request: Request, reason: str) -> list[Sequence]:
        """End all answers of a request that have not ended, and give its blocks back."""
        for sequence in request.sequences:
            if not sequence.answer.finished:
                sequence.answer.finish(reason)
        self._scheduler.abort(request.id)
        return request.sequences

    def _propose_drafts(self) -> None:
        most = self.settings.num_speculative_tokens
        if not most:
            return
        for sequence in self._scheduler.running:
            sequence.drafts = []
            left = sequence.prompt_length + sequence.limit - len(sequence.tokens)
            if sequence.decoding and left > 1:
                index = self._lookup(sequence)
                sequence.drafts = index.propose(sequence.tokens, most=min(most, left - 1))

    def _lookup(self, sequence: Sequence) -> NgramIndex:
        lookups = self._records[sequence.request.id].lookups
        if sequence.index not in lookups:
            longest, shortest = self.settings.prompt_lookup_max, self.settings.prompt_lookup_min
            lookups[sequence.index] = NgramIndex(longest=longest, shortest=shortest)
        return lookups[sequence.index]

    def _compute(self, step: Step) -> dict[Sequence, list[int]]:
        """Run a step and choose its tokens: those that each sequence takes on."""
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
            return {}
        # A step of decodes needs all of its rows, which then need not be copied.
        logits = self._runner.logits(hidden if len(rows) == hidden.shape[0] else hidden[rows])
        runs = [
            (chunk.sequence.answer, chunk.tokens[len(chunk.tokens) - chunk.drafts :]) for chunk in sampling
        ]
        chosen = self._sampler.choose_runs(logits, runs)
        return {
            chunk.sequence: self._accept(chunk, choices)
            for chunk, choices in zip(sampling, chosen, strict=True)
        }

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
        self.totals.drafted += chunk.drafts
        self.totals.accepted += max(0, len(tokens) - 1)
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

    # Ends

    def _fail_spoilt(self, accepted: Iterable[Sequence]) -> list[Sequence]:
        """A request one of whose answers failed (its logits were nan) fails as a whole."""
        failed: list[Sequence] = []
        for sequence in accepted:
            if sequence.answer.error is not None:
                failed += self._fail([sequence.request], sequence.answer.error)
        return failed

    def _fail(self, requests: Iterable[Request], text: str) -> list[Sequence]:
        failed: list[Sequence] = []
        for request in requests:
            request.error = text
            failed += self._end(request, "error")
        return failed

    def _count_ended(self, changed: list[Sequence]) -> list[Sequence]:
        """Count the answers and requests among `changed` that have ended."""
        for sequence in changed:
            record = self._records[sequence.request.id]
            if not sequence.answer.finished or sequence.index in record.counted:
                continue
            record.counted.add(sequence.index)
            output = sequence.answer.output
            self.totals.add_answer(str(output.finish_reason), len(output.token_ids))
            if len(record.counted) == len(sequence.request.sequences):
                self.totals.add_request(len(sequence.request.prompt), record.metrics())
        return changed

    # Insight

    def stats(self, *, preparing: int = 0, image_cache: CacheUse | None = None) -> Stats:
        pool, features = self._pool, self._features
        return Stats(
            preparing=preparing,
            waiting=self.waiting,
            running=self.running,
            blocks_used=pool.used_blocks,
            blocks_total=pool.blocks,
            prefix_cache=CacheUse(pool.queries, pool.hits),
            encoder_cache=CacheUse(features.hits + features.misses, features.hits, features.bytes),
            image_cache=image_cache or CacheUse(),
            totals=self.totals,
        )

    def check_integrity(self) -> None:
        """Raises AssertionError where blocks, features or sequences do not add up."""
        self._scheduler.check_integrity()
        self._features.check_integrity()


def _sentence(error: Exception) -> str:
    if isinstance(error, SightlineError):
        return str(error)
    kind, text = type(error).__name__, first_line(error)
    if isinstance(error, MemoryError) or "OutOfMemory" in kind or "allocate memory" in text:
        return (
            f"the step that computed this request ran out of memory ({text}); lower max_num_batched_tokens, "
            "max_pixels or gpu_memory_utilization"
        )
    return f"the step that computed this request failed: {kind}: {text}"
