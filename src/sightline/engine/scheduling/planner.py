"""What the next step computes: one token of every answer that runs, and as much of the prompts as fits beside them.

Nothing overtakes in the order of the queues: what is more important gets the blocks, the token budget and the
encoder first. So the most important sequence always gets on, and within a priority each one becomes the most
important in its turn. More important requests that never cease to come keep lesser ones waiting.
When blocks run out, the least important sequence gives all of its own back and computes them again later;
`Sequence.tokens` keeps what it has answered so far.
"""

from __future__ import annotations

import time
from collections import deque

from sightline.engine.scheduling.blocks import BlockPool
from sightline.engine.scheduling.claims import Claims
from sightline.engine.scheduling.queues import Queues
from sightline.engine.scheduling.sequence import Sequence, Status
from sightline.engine.scheduling.step import Chunk, Step


class Planner:
    """Fills steps; see `Scheduler` for the limits."""

    def __init__(
        self,
        queues: Queues,
        pool: BlockPool,
        claims: Claims,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_partial_prefills: int,
    ) -> None:
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_partial_prefills = max_partial_prefills
        self._queues = queues
        self._pool = pool
        self._claims = claims
        # The order of the first waiting sequence that did not fit, and how many had left the running ones then.
        self._shortage: tuple[tuple[int, int, int] | None, int] = (None, 0)
        # Of the step that is being planned: its chunks, the tokens left, the prompts that it leaves unfinished,
        # and the blocks that running sequences will take soon (None: count them).
        self._step = Step()
        self._chunks: dict[Sequence, Chunk] = {}
        self._budget = 0
        self._partial = 0
        self._promised: int | None = None

    def plan(self) -> Step:
        """The next step; blocks and room for features are taken when this returns."""
        self._step = Step()
        self._chunks = {}
        self._budget = self.max_num_batched_tokens
        self._partial = 0
        self._promised = None
        self._claims.begin()
        self._decode()
        self._prefill()
        step = self._step
        step.chunks = list(self._chunks.values())
        step.encode = self._claims.encode(step.chunks)
        # Kept here, the last step's requests would keep their pixels until another step comes.
        self._step, self._chunks = Step(), {}
        if not self._queues.waiting:
            self._shortage = (None, 0)
        return step

    # One token, and drafts, of each running answer.

    def _decode(self) -> None:
        running = self._queues.running
        decoding = [sequence for sequence in running if sequence.decoding]
        spare = self.max_num_batched_tokens - len(decoding)
        if self._queues.waiting or len(decoding) < len(running):
            # Drafts may be wrong; they shall not keep prompts from their turn.
            spare //= 2
        for sequence in decoding:
            if not self._make_room(sequence):
                continue
            drafts = self._drafts(sequence, spare) if sequence.drafts else []
            spare -= len(drafts)
            start = sequence.computed
            self._pool.grow(sequence, start + 1 + len(drafts))
            self._run(Chunk(sequence, start, [sequence.tokens[-1], *drafts], len(drafts), samples=True))

    def _make_room(self, sequence: Sequence) -> bool:
        """Get the sequence room for a token, if need be from less important ones; False where it lost its own."""
        while sequence.status is Status.RUNNING and self._pool.room(sequence) < 1:
            self._preempt(self._queues.running[-1])
        return sequence.status is Status.RUNNING

    def _drafts(self, sequence: Sequence, most: int) -> list[int]:
        """The drafts worth checking: within the budget, the answer's limit and the blocks that are free."""
        # Where blocks run low, they are for certain tokens.
        spare = max(0, self._pool.free_blocks - len(self._queues.running))
        room = (len(sequence.blocks) + spare) * self._pool.block_size - sequence.computed
        most = min(most, sequence.most_computed - sequence.computed - 1, room - 1)
        return sequence.drafts[: max(0, most)]

    # Chunks of prompts: those that run and those that wait, in their common order.

    def _prefill(self) -> None:
        waiting = self._queues.waiting
        running = deque(sequence for sequence in self._queues.running if not sequence.decoding)
        admitting = True
        while self._budget and self._partial < self.max_partial_prefills:
            # What was preempted a moment ago shall not come back before its blocks are used.
            admitting = admitting and not self._step.preempted
            if admitting and waiting and not (running and running[0].order < waiting[0].order):
                admitting = self._admit(waiting[0])
            elif running:
                self._continue(running.popleft())
            else:
                return

    def _continue(self, sequence: Sequence) -> None:
        """The next chunk of a prompt that runs. The least important one waits for blocks; others take them."""
        if sequence.status is Status.RUNNING:
            while self._pool.room(sequence) < 1 and self._queues.running[-1] is not sequence:
                self._preempt(self._queues.running[-1])
            self._promised = None
            self._compute(sequence)

    def _admit(self, sequence: Sequence) -> bool:
        """Let the first waiting sequence run; False where it must wait on, and all behind it."""
        if len(self._queues.running) >= self.max_num_seqs:
            return False
        # To look for a long prompt in the cache takes time: again only when one has left since the last time.
        if self._shortage == (sequence.order, self._queues.departures):
            return False
        if not (sequence.index == 0 and sequence.request.logs_prompt):
            self._pool.match(sequence)
        cached = sequence.computed
        if not self._fits(sequence) or not self._compute(sequence):
            self._pool.free(sequence)
            return False
        self._promised = self._promises() + self._pool.missing(sequence, len(sequence.tokens) + 1)
        self._queues.start(sequence)
        if sequence.scheduled_at is None:
            sequence.scheduled_at = time.perf_counter()
            self._pool.count_match(sequence)
            if sequence.index == 0:
                sequence.request.cached_tokens = cached
        return True

    def _fits(self, sequence: Sequence) -> bool:
        """Whether there are blocks for all its known tokens beside those that running sequences are about to need.

        Where only less important ones stand in the way, they are preempted.
        """
        pool, running = self._pool, self._queues.running
        missing = pool.missing(sequence, len(sequence.tokens))
        if missing + self._promises() <= pool.free_blocks:
            return True
        lesser = [other for other in running if other.request.priority > sequence.request.priority]
        could_be_free = pool.free_blocks + pool.held_only_by(lesser)
        if missing + self._promises() <= could_be_free:
            while lesser and missing + self._promises() > pool.free_blocks:
                self._preempt(lesser.pop())
            if missing + self._promises() <= pool.free_blocks:
                return True
        self._shortage = (sequence.order, self._queues.departures)
        return False

    def _promises(self) -> int:
        """Blocks that running sequences will take soon: all of their prompts, and one for each answer."""
        if self._promised is None:
            self._promised = sum(
                1 if sequence.decoding else self._pool.missing(sequence, len(sequence.tokens) + 1)
                for sequence in self._queues.running
            )
        return self._promised

    def _compute(self, sequence: Sequence) -> bool:
        """Make the next chunk of a prompt, as long as budget, blocks and features allow; False where it is empty."""
        start = sequence.computed
        count = min(sequence.pending, self._budget, self._pool.room(sequence))
        if not count:
            return False
        end = self._claims.reach(sequence, start + count)
        if end == start:
            return False
        self._pool.grow(sequence, end)
        samples = end == len(sequence.tokens)
        self._run(Chunk(sequence, start, sequence.tokens[start:end], samples=samples))
        self._partial += not samples
        return True

    def _run(self, chunk: Chunk) -> None:
        self._chunks[chunk.sequence] = chunk
        self._budget -= len(chunk.tokens)

    def _preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's blocks, and its chunk of this step; it begins again when its turn comes."""
        chunk = self._chunks.pop(sequence, None)
        if chunk is not None:
            self._budget += len(chunk.tokens)
            self._partial -= not chunk.samples
        self._queues.leave(sequence)
        self._claims.release(sequence)
        self._pool.free(sequence)
        self._promised = None
        sequence.drafts = []
        sequence.preemptions += 1
        self._queues.wait(sequence)
        self._step.preempted.append(sequence)
