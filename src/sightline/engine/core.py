"""One step after another: what the scheduler decides, the runner computes and the sampler chooses, put together.

Used by one thread at a time. A request that fails takes nothing with it: its blocks go back, the others go on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sightline.engine.compute import Computer, sentence
from sightline.engine.outputs import RequestOutput
from sightline.engine.record import Preparation, Record
from sightline.engine.sampling.speculation import NgramIndex
from sightline.engine.stats import CacheUse, Stats, Totals
from sightline.errors import SightlineError

if TYPE_CHECKING:
    from sightline.engine.scheduling.request import Request
    from sightline.engine.scheduling.sequence import Sequence
    from sightline.engine.settings import EngineSettings

log = logging.getLogger("sightline.engine")


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
        self._scheduler = scheduler
        self._pool = pool
        self._features = features
        self._records: dict[str, Record] = {}
        self._computer = Computer(
            runner,
            sampler,
            features,
            records=self._records,
            totals=self.totals,
            tokenizer=tokenizer,
            free_memory=free_memory,
        )

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
        outcome = self._computer.compute(step)
        changed += outcome.accepted
        # Before the commit: what a failed request computed shall not be found by others.
        for request, text in outcome.faults.items():
            changed += self._fail(request, text)
        try:
            self._scheduler.commit(step, outcome.accepted)
        except Exception as error:
            log.exception("committing a step of %d tokens failed", step.tokens)
            for request in dict.fromkeys(chunk.sequence.request for chunk in step.chunks):
                if not request.finished:
                    changed += self._fail(request, sentence(error))
        self._count_tokens(outcome.accepted)
        self.totals.add_step(step.tokens, time.perf_counter() - begun)
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

    # Ends

    def _count_tokens(self, accepted: dict[Sequence, list[int]]) -> None:
        """Count what a step brought; once a step and answer, so it must stay far below what a token costs."""
        now, totals = time.perf_counter(), self.totals
        between = totals.histograms["inter_token"]
        for sequence, tokens in accepted.items():
            if not tokens:
                continue
            totals.generation_tokens += len(tokens)
            if sequence.told_at is not None:
                between.add(now - sequence.told_at)
            elif sequence.index == 0:
                given = self._records[sequence.request.id].preparation.given
                totals.add_prompt(sequence.request, now - given)
            sequence.told_at = now

    def _fail(self, request: Request, text: str) -> list[Sequence]:
        request.error = text
        return self._end(request, "error")

    def _count_ended(self, changed: list[Sequence]) -> list[Sequence]:
        """Count the answers and requests among `changed` that have ended."""
        for sequence in changed:
            record = self._records[sequence.request.id]
            if not sequence.answer.finished or sequence.index in record.counted:
                continue
            record.counted.add(sequence.index)
            self.totals.add_answer(str(sequence.answer.output.finish_reason))
            request = sequence.request
            if len(record.counted) == len(request.sequences) and _ended_well(request):
                self.totals.add_request(request, record.metrics())
        return changed

    # Insight

    def stats(
        self,
        *,
        preparing: int = 0,
        image_cache: CacheUse | None = None,
        received: int = 0,
        turned_away: int = 0,
    ) -> Stats:
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
            totals=self.totals.copy(),
            waiting_adapters=_adapters(self._scheduler.waiting),
            running_adapters=_adapters(self._scheduler.running),
            received=received,
            turned_away=turned_away,
        )

    def check_integrity(self) -> None:
        """Raises AssertionError where blocks, features or sequences do not add up."""
        self._scheduler.check_integrity()
        self._features.check_integrity()


def _ended_well(request: Request) -> bool:
    return all(sequence.answer.output.finish_reason in ("stop", "length") for sequence in request.sequences)


def _adapters(sequences: list[Sequence]) -> frozenset[str]:
    # Copied first: the engine's thread may be changing it.
    adapted = (sequence.request.adapted for sequence in list(sequences))
    return frozenset(adapter.info.name for adapter in adapted if adapter is not None)
