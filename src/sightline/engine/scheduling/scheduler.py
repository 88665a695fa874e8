"""The life of requests, from `add` to the end of their last answer, step by step and without tensors.

A step is planned (`scheduling.planner`), computed by someone else, and committed. What a request asks more than once of
its prompt, n answers, is computed once: the further answers are held back until the prompt's blocks can be found.
"""

from __future__ import annotations

import itertools
import time
from collections import deque

from sightline.engine.scheduling.blocks import BlockPool
from sightline.engine.scheduling.claims import Claims, FeatureStore
from sightline.engine.scheduling.planner import Planner
from sightline.engine.scheduling.queues import Queues
from sightline.engine.scheduling.request import Request
from sightline.engine.scheduling.sequence import Sequence, Status
from sightline.engine.scheduling.step import Chunk, Step
from sightline.errors import UsageError

__all__ = ["Chunk", "FeatureStore", "Scheduler", "Step"]


class Scheduler:
    """Decides what runs. All methods are for the engine's thread.

    Args:
        features: where the features of media are kept.
        max_num_seqs: most sequences that run together.
        max_num_batched_tokens: most tokens of a step, drafts included.
        max_model_len: most tokens of a prompt with its answer.
        max_encoder_tokens: most vision tokens encoded in a step; one medium alone may have more.
        max_partial_prefills: most prompts that a step leaves unfinished.

    Raises:
        UsageError: a limit is below what a step needs.
    """

    def __init__(
        self,
        pool: BlockPool,
        features: FeatureStore,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        max_encoder_tokens: int,
        max_partial_prefills: int = 4,
    ) -> None:
        if max_num_seqs < 1:
            raise UsageError(f"max_num_seqs must be at least 1, not {max_num_seqs}")
        if max_num_batched_tokens < max_num_seqs:
            raise UsageError(
                f"max_num_batched_tokens is {max_num_batched_tokens}, but each of max_num_seqs {max_num_seqs} "
                "answers gets a token a step; raise the first or lower the second"
            )
        self.pool = pool
        self.max_model_len = max_model_len
        self._queues = Queues()
        self._claims = Claims(features, max_encoder_tokens)
        self._planner = Planner(
            self._queues,
            pool,
            self._claims,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_partial_prefills=max_partial_prefills,
        )
        self._requests: dict[str, Request] = {}
        self._arrivals = itertools.count()
        # Filled by other threads; a deque takes that.
        self._aborts: deque[Request] = deque()
        # Requests whose further answers wait for the prompt's blocks.
        self._held: set[Request] = set()

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    @property
    def waiting(self) -> list[Sequence]:
        """In order; not to be changed. Held back answers are not among them."""
        return self._queues.waiting

    @property
    def running(self) -> list[Sequence]:
        """In order; not to be changed."""
        return self._queues.running

    def check(self, request: Request) -> None:
        """See whether a request can be served at all. May be called from any thread.

        Raises:
            UsageError: it never can; names the number that is too large and the setting that limits it.
        """
        first = request.sequences[0]
        prompt, limit = first.prompt_length, first.limit
        if not prompt:
            raise UsageError(f"request {request.id}: the prompt is empty; give at least one token")
        if prompt >= self.max_model_len:
            raise UsageError(
                f"request {request.id}: a prompt of {prompt} tokens leaves no room for an answer within "
                f"max_model_len {self.max_model_len}; shorten it, use smaller images or raise max_model_len"
            )
        if prompt + limit > self.max_model_len:
            raise UsageError(
                f"request {request.id}: {prompt} prompt tokens and max_tokens {limit} exceed max_model_len "
                f"{self.max_model_len}; lower max_tokens or raise max_model_len"
            )
        room = self.pool.blocks * self.pool.block_size
        if first.most_computed > room:
            raise UsageError(
                f"request {request.id}: {prompt} prompt tokens and up to {limit} answer tokens do not fit into "
                f"the KV cache of {room} tokens; lower max_tokens or give it more memory "
                "(kv_cache_memory_bytes)"
            )

    def add(self, request: Request) -> None:
        """Take a request on; its sequences run when their turn comes.

        Raises:
            UsageError: it can never be served, or one of the same id is on its way.
        """
        if request.id in self._requests:
            raise UsageError(f"request {request.id} is already being served; give each request its own id")
        self.check(request)
        request.arrival = next(self._arrivals)
        self._requests[request.id] = request
        self._queues.wait(request.sequences[0])
        if len(request.sequences) > 1:
            self._held.add(request)
        # Read after it is set, so that an abort from another thread at this moment is not lost.
        request.on_abort = self._aborts.append
        if request.aborted:
            self._aborts.append(request)

    def abort(self, request_id: str) -> None:
        """End a request and forget it at once; nothing happens if it is not known.

        Not between `schedule` and the forward, which may need its features: for that there is `Request.abort`,
        which takes effect in the next `schedule`. What is scheduled of it already is not committed.
        """
        request = self._requests.pop(request_id, None)
        if request is None:
            return
        request.aborted = True
        self._held.discard(request)
        now = time.perf_counter()
        # The first one last: it has the prompt's blocks, which nobody shall look for any more.
        for sequence in reversed(request.sequences):
            if sequence.status is not Status.FINISHED:
                if not sequence.answer.finished:
                    sequence.answer.finish("abort")
                self._end(sequence, now)

    def schedule(self) -> Step:
        """Act on aborts, then choose the next step's chunks; blocks and room for features are taken.

        Every step with chunks must be given to `commit`, or its requests aborted.
        """
        aborted = []
        while self._aborts:
            request = self._aborts.popleft()
            if self._requests.get(request.id) is request:
                self.abort(request.id)
                aborted.append(request)
        step = self._planner.plan()
        step.aborted = aborted
        return step

    def commit(self, step: Step, accepted: dict[Sequence, list[int]]) -> list[Sequence]:
        """Enter what a step computed; returns the sequences that finished with it.

        Args:
            accepted: for each chunk that samples, the tokens that its answer took: accepted drafts and one more.
        """
        finished = []
        now = time.perf_counter()
        for chunk in step.chunks:
            sequence = chunk.sequence
            if sequence.status is not Status.RUNNING:
                continue
            self._advance(chunk, accepted.get(sequence, []) if chunk.samples else [], now)
            if sequence.answer.finished:
                self._end(sequence, now)
                finished.append(sequence)
                if sequence.request.finished:
                    del self._requests[sequence.request.id]
        return finished

    def _advance(self, chunk: Chunk, accepted: list[int], now: float) -> None:
        """Count a chunk's tokens as computed, drafts only as far as they were accepted."""
        sequence = chunk.sequence
        certain = len(chunk.tokens) - chunk.drafts
        kept = max(0, len(accepted) - 1)
        if kept and accepted[:-1] != chunk.tokens[certain : certain + kept]:
            raise ValueError(f"{sequence} accepted {accepted}, but its drafts were {chunk.tokens[certain:]}")
        sequence.drafts = []
        sequence.tokens += accepted
        # Without a new token the last one is computed again, for its logits.
        sequence.computed = min(chunk.start + certain + kept, len(sequence.tokens) - 1)
        if accepted and sequence.first_token_at is None:
            sequence.first_token_at = now
        self.pool.publish(sequence)
        if sequence.pinned:
            self._claims.passed(sequence)
        if sequence.request in self._held and chunk.start + certain >= sequence.prompt_length:
            self._held.remove(sequence.request)
            for further in sequence.request.sequences[1:]:
                self._queues.wait(further)

    def _end(self, sequence: Sequence, now: float) -> None:
        self._queues.leave(sequence)
        self._claims.release(sequence)
        sequence.status = Status.FINISHED
        sequence.finished_at = now
        sequence.drafts = []
        self.pool.free(sequence)

    def check_integrity(self) -> None:
        """Check the books between two steps.

        Raises:
            AssertionError: with a sentence, where they do not balance.
        """
        sequences = [sequence for request in self._requests.values() for sequence in request.sequences]
        self.pool.check_integrity(sequences)
        self._queues.check_integrity(sequences)
        assert self._held <= set(self._requests.values()), "answers are held back for a request that is gone"
        for sequence in sequences:
            if sequence.status is Status.RUNNING:
                assert sequence.pending > 0, f"{sequence} has nothing left to compute"
            else:
                assert not sequence.blocks, f"{sequence} does not run but holds blocks"
                assert not sequence.pinned, f"{sequence} does not run but holds features"
