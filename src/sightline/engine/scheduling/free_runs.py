"""Which blocks are free, as runs of neighbours.

Attention on a CPU reads a run of neighbouring blocks in place and must copy what is scattered, so a sequence is
given the block right behind its last one while that is free, and a new one begins where most neighbours are free
that no growing sequence hopes for. Every call takes time by the number of runs touched, never by the number of
blocks.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush


class FreeRuns:
    """The free ones of `blocks` blocks. `count` is how many there are."""

    def __init__(self, blocks: int) -> None:
        self.count = 0
        self._end: dict[int, int] = {}
        self._start: dict[int, int] = {}
        # Where a run begins behind a sequence that still grows: the end of the blocks that it hopes to get.
        self._hopes: dict[int, int] = {}
        # (-blocks nobody hopes for, start) of every run, and of runs that are no more.
        self._widest: list[tuple[int, int]] = []
        if blocks:
            self.count = blocks
            self._put(0, blocks)

    @property
    def widest(self) -> int:
        """The most neighbours that nobody hopes for."""
        return self._unhoped(self._widest_run()) if self.count else 0

    def behind(self, block: int, most: int) -> list[int]:
        """Take up to `most` free blocks right behind `block`."""
        start = block + 1
        if start not in self._end:
            return []
        return self._take(start, start, min(most, self._end[start] - start))

    def anywhere(self, most: int) -> list[int]:
        """Take up to `most` neighbours where most are free; none where no block is."""
        if not self.count:
            return []
        start = self._widest_run()
        end = self._end[start]
        # Behind what is hoped for; where that is all, the neighbour keeps half of what would be left over.
        first = end - self._unhoped(start)
        if end - first < most:
            first = start + max(0, end - start - most) // 2
        return self._take(start, first, min(most, end - first))

    def add(self, block: int) -> None:
        """A block became free."""
        start, end = block, block + 1
        if block in self._start:
            start = self._start.pop(block)
            del self._end[start]
        if end in self._end:
            end = self._end.pop(end)
            del self._start[end]
        self.count += 1
        self._put(start, end)

    def hope(self, block: int, more: int) -> None:
        """The sequence that ends with `block` may grow by `more` blocks."""
        start = block + 1
        self._hopes[start] = start + more
        if start in self._end:
            self._push(start)

    def give_up(self, block: int) -> None:
        """The sequence that ended with `block` no longer grows behind it."""
        start = block + 1
        if self._hopes.pop(start, None) is not None and start in self._end:
            self._push(start)

    def runs(self) -> dict[int, int]:
        """Start and end of every run."""
        return dict(self._end)

    def _take(self, run: int, first: int, count: int) -> list[int]:
        end = self._end.pop(run)
        del self._start[end]
        last = first + count
        if run < first:
            self._put(run, first)
        if last < end:
            self._put(last, end)
        self.count -= count
        return list(range(first, last))

    def _put(self, start: int, end: int) -> None:
        self._end[start] = end
        self._start[end] = start
        self._push(start)

    def _push(self, start: int) -> None:
        heappush(self._widest, (-self._unhoped(start), start))
        if len(self._widest) > 2 * len(self._end) + 1000:
            self._widest = [(-self._unhoped(start), start) for start in self._end]
            heapify(self._widest)

    def _unhoped(self, start: int) -> int:
        end = self._end[start]
        return end - min(end, self._hopes.get(start, start))

    def _widest_run(self) -> int:
        while True:
            width, start = self._widest[0]
            if start in self._end and self._unhoped(start) == -width:
                return start
            heappop(self._widest)
