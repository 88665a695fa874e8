"""What each step computes: one token of every answer that runs, and as much of the prompts as fits beside them.

Sequences are ordered by (priority, arrival, index) and nothing overtakes in that order: what is more important
gets the blocks, the token budget and the encoder first. So the most important sequence always gets on, and each
one becomes the most important in its turn. When blocks run out, the least important sequence gives all of its
own back and computes them again later; `tokens` keeps what it has answered so far.
"""

from __future__ import annotations

import itertools
import time
from bisect import bisect_left, insort
from collections import deque

from sightline.engine.blocks import BlockPool
from sightline.engine.claims import Claims, FeatureStore
from sightline.engine.request import Request
from sightline.engine.sequence import Sequence, Status
from sightline.engine.step import Chunk, Step
from sightline.errors import UsageError


class Scheduler:
    """Decides what runs; holds no tensors. All methods are for the engine's thread.

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
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.max_partial_prefills = max_partial_prefills
        # Both in order.
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._requests: dict[str, Request] = {}
        self._arrivals = itertools.count()
        self._aborts: deque[Request] = deque()
        self._claims = Claims(features, max_encoder_tokens)
        # Requests whose other answers wait until the prompt's blocks can be found.
        self._held: set[Request] = set()
        # How often a sequence gave its blocks back, and that count when the first of `waiting` did not fit.
        self._returns = 0
        self._shortage: tuple[Sequence | None, int] = (None, 0)
        # Of the step that is being made:
        self._chunks: dict[Sequence, Chunk] = {}
        self._step = Step()
        self._budget = 0
        self._partial = 0

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def check(self, request: Request) -> None:
        """See whether a request can be served at all.

        Raises:
            UsageError: it never can; names the number that is too large and the setting that limits it.
        """
        prompt, limit = len(request.prompt), request.sequences[0].limit
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
        if request.sequences[0].most_computed > room:
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
        insort(self.waiting, request.sequences[0], key=_order)
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
        request = self._requests.get(request_id)
        if request is None:
            return
        request.aborted = True
        for sequence in request.sequences:
            if sequence.status is Status.FINISHED:
                continue
            if not sequence.answer.finished:
                sequence.answer.finish("abort")
            self._leave(sequence)
            sequence.status = Status.FINISHED
            sequence.finished_at = time.perf_counter()
        for sequence in request.sequences:
            self._free(sequence)
        self._held.discard(request)
        del self._requests[request_id]

    def schedule(self) -> Step:
        """Choose the next step's chunks; blocks and room for features are taken when this returns.

        Every step with chunks must be given to `commit`, or its requests aborted.
        """
        self._step = Step()
        self._chunks = {}
        self._claims.begin()
        self._end_aborted()
        self._budget = self.max_num_batched_tokens
        self._partial = 0
        self._decode()
        self._prefill()
        self._step.chunks = list(self._chunks.values())
        self._step.encode = self._claims.encode(self._step.chunks)
        return self._step

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
                self._finish(sequence, now)
                finished.append(sequence)
        return finished

    def check_integrity(self) -> None:
        """Check the books between two steps.

        Raises:
            AssertionError: with a sentence, where they do not balance.
        """
        sequences = [sequence for request in self._requests.values() for sequence in request.sequences]
        self.pool.check_integrity(sequences)
        for name, status in (("waiting", Status.WAITING), ("running", Status.RUNNING)):
            queue: list[Sequence] = getattr(self, name)
            assert queue == sorted(queue, key=_order), f"the {name} sequences are out of order"
            assert all(sequence.status is status for sequence in queue), f"a {name} sequence is not {name}"
        running = {sequence for sequence in sequences if sequence.status is Status.RUNNING}
        assert running == set(self.running), "the running sequences are not those of the known requests"
        assert len(running) <= self.max_num_seqs, f"{len(running)} sequences run"
        for sequence in sequences:
            if sequence not in running:
                assert not sequence.blocks, f"{sequence} does not run but holds blocks"
                assert not sequence.pinned, f"{sequence} does not run but holds features"
            else:
                assert sequence.pending > 0, f"{sequence} has nothing left to compute"

    # One token, and drafts, of each running answer.

    def _decode(self) -> None:
        decoding = [sequence for sequence in self.running if sequence.decoding]
        spare = self.max_num_batched_tokens - len(decoding)
        if self.waiting or len(decoding) < len(self.running):
            # Drafts may be wrong; they shall not keep prompts from their turn.
            spare //= 2
        for sequence in decoding:
            if not self._make_room(sequence):
                continue
            drafts = self._drafts(sequence, spare)
            spare -= len(drafts)
            start = sequence.computed
            self.pool.grow(sequence, start + 1 + len(drafts))
            self._run(Chunk(sequence, start, [sequence.tokens[-1], *drafts], len(drafts), samples=True))

    def _drafts(self, sequence: Sequence, most: int) -> list[int]:
        """The drafts worth checking: within the budget, the answer's limit and the blocks that are free."""
        if not sequence.drafts:
            return []
        # Where blocks run low, they are for certain tokens.
        room = len(sequence.blocks) * self.pool.block_size - sequence.computed
        if self.pool.free_blocks > len(self.running):
            room = self.pool.room(sequence)
        most = min(most, sequence.most_computed - sequence.computed - 1, room - 1)
        return sequence.drafts[: max(0, most)]

    def _make_room(self, sequence: Sequence) -> bool:
        """Get the sequence room for a token, if need be from less important ones; False where it lost its own."""
        while sequence.status is Status.RUNNING and self.pool.room(sequence) < 1:
            self._preempt(self.running[-1])
        return sequence.status is Status.RUNNING

    # Chunks of prompts: those that run and those that wait, in their common order.

    def _prefill(self) -> None:
        running = deque(sequence for sequence in self.running if not sequence.decoding)
        admitting = not self._step.preempted
        while self._budget and self._partial < self.max_partial_prefills and (running or admitting):
            admitting = admitting and bool(self.waiting)
            if admitting and not (running and running[0].order < self.waiting[0].order):
                admitting = self._admit(self.waiting[0])
            elif running:
                sequence = running.popleft()
                if sequence.status is Status.RUNNING:
                    self._continue(sequence)

    def _continue(self, sequence: Sequence) -> None:
        """The next chunk of a prompt that runs. The least important one waits for blocks; others take them."""
        while self.pool.room(sequence) < 1 and self.running[-1] is not sequence:
            self._preempt(self.running[-1])
        self._compute(sequence)

    def _admit(self, sequence: Sequence) -> bool:
        """Let the first waiting sequence run; False where it must wait on, and all behind it."""
        if len(self.running) >= self.max_num_seqs:
            return False
        # To look for a long prompt in the cache takes time: again only when there is more room than last time.
        if self.running and self._shortage == (sequence, self._returns):
            return False
        if not (sequence.index == 0 and sequence.request.logs_prompt):
            self.pool.match(sequence)
        if not self._fits(sequence) or not self._compute(sequence):
            self.pool.free(sequence)
            return False
        self._start(sequence)
        return True

    def _start(self, sequence: Sequence) -> None:
        self.waiting.remove(sequence)
        sequence.status = Status.RUNNING
        insort(self.running, sequence, key=_order)
        if sequence.scheduled_at is None:
            sequence.scheduled_at = time.perf_counter()
            self.pool.count_match(sequence)
            if sequence.index == 0:
                sequence.request.cached_tokens = sequence.computed

    def _fits(self, sequence: Sequence) -> bool:
        """Whether there are blocks for all its known tokens beside those that running sequences are about to need.

        Where only less important ones stand in the way, they are preempted.
        """
        if not self.running:
            return True
        missing = self.pool.missing(sequence, len(sequence.tokens))
        wanted = missing + self._promised()
        if wanted > self.pool.free_blocks:
            lesser = [other for other in self.running if other.request.priority > sequence.request.priority]
            if wanted <= self.pool.free_blocks + sum(len(other.blocks) for other in lesser):
                for other in reversed(lesser):
                    if missing + self._promised() > self.pool.free_blocks:
                        self._preempt(other)
        if missing + self._promised() <= self.pool.free_blocks:
            return True
        self._shortage = (sequence, self._returns)
        return False

    def _promised(self) -> int:
        """Blocks that running sequences will take soon: all of their prompts, and one for each answer."""
        return sum(
            1 if sequence.decoding else self.pool.missing(sequence, len(sequence.tokens) + 1)
            for sequence in self.running
        )

    def _compute(self, sequence: Sequence) -> bool:
        """Make the next chunk of a prompt, as long as budget, blocks and features allow; False where it is empty."""
        start = sequence.computed
        count = min(sequence.pending, self._budget, self.pool.room(sequence))
        if not count:
            return False
        end = self._claims.reach(sequence, start + count)
        if end <= start:
            return False
        self.pool.grow(sequence, end)
        samples = end == len(sequence.tokens)
        self._run(Chunk(sequence, start, sequence.tokens[start:end], samples=samples))
        self._partial += not samples
        return True

    def _run(self, chunk: Chunk) -> None:
        self._chunks[chunk.sequence] = chunk
        self._budget -= len(chunk.tokens)

    # Ends and returns.

    def _preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's blocks, and its chunk of this step; it begins again when its turn comes."""
        chunk = self._chunks.pop(sequence, None)
        if chunk is not None:
            self._budget += len(chunk.tokens)
            self._partial -= not chunk.samples
        self._leave(sequence)
        self._free(sequence)
        sequence.status = Status.WAITING
        sequence.preemptions += 1
        insort(self.waiting, sequence, key=_order)
        self._step.preempted.append(sequence)

    def _leave(self, sequence: Sequence) -> None:
        """Take a sequence off its queue; one that was held back is on none."""
        queue = self.running if sequence.status is Status.RUNNING else self.waiting
        place = bisect_left(queue, sequence.order, key=_order)
        if place < len(queue) and queue[place] is sequence:
            del queue[place]
        self._claims.release(sequence)
        sequence.drafts = []

    def _free(self, sequence: Sequence) -> None:
        self.pool.free(sequence)
        self._returns += 1

    def _end_aborted(self) -> None:
        while self._aborts:
            request = self._aborts.popleft()
            if self._requests.get(request.id) is request:
                self.abort(request.id)
                self._step.aborted.append(request)

    def _advance(self, chunk: Chunk, accepted: list[int], now: float) -> None:
        """Count a chunk's tokens as computed, drafts only as far as they were accepted."""
        sequence = chunk.sequence
        sequence.drafts = []
        certain = len(chunk.tokens) - chunk.drafts
        kept = max(0, len(accepted) - 1)
        if accepted[:-1] != chunk.tokens[certain : certain + kept]:
            raise ValueError(f"{sequence} accepted {accepted}, but its drafts were {chunk.tokens[certain:]}")
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
            for sibling in sequence.request.sequences[1:]:
                insort(self.waiting, sibling, key=_order)

    def _finish(self, sequence: Sequence, now: float) -> None:
        self._leave(sequence)
        sequence.status = Status.FINISHED
        sequence.finished_at = now
        self._free(sequence)
        if sequence.request.finished:
            del self._requests[sequence.request.id]


def _order(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.order
