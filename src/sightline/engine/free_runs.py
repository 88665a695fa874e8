"""Which blocks are free, as runs of neighbours.

Attention on a CPU reads a run of neighbouring blocks in place and must copy what is scattered, so a sequence is
given the block right behind its last one while that is free, and a new one begins in the longest free run,
leaving its neighbour on the left room to grow. Every call takes time by the number of runs touched, never by
the number of blocks.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush


class FreeRuns:
    """The free ones of `blocks` blocks. `count` is how many there are."""

    def __init__(self, blocks: int) -> None:
        self.count = blocks
        self._end = {0: blocks}
        self._start = {blocks: 0}
        # (-length, start) of every run, and of runs that are no more.
        self._longest = [(-blocks, 0)]
        # Where a run begins behind a sequence that still grows: the block up to which that one hopes to get.
        self._hopes: dict[int, int] = {}

    def behind(self, block: int, most: int) -> list[int]:
        """Take up to `most` free blocks right behind `block`."""
        start = block + 1
        if start not in self._end:
            return []
        return self._take(start, start, min(most, self._end[start] - start))

    def anywhere(self, most: int) -> list[int]:
        """Take up to `most` neighbours from the longest run; none where nothing is free."""
        if not self.count:
            return []
        start, end = self._longest_run()
        hoped = self._hopes.get(start, start) - start
        first = start + min(hoped, max(0, end - start - most) // 2)
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
        self._hopes[block + 1] = block + 1 + more

    def give_up(self, block: int) -> None:
        """The sequence that ended with `block` no longer grows behind it."""
        self._hopes.pop(block + 1, None)

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
        heappush(self._longest, (start - end, start))
        if len(self._longest) > 2 * len(self._end) + 1000:
            self._longest = [(start - end, start) for start, end in self._end.items()]
            heapify(self._longest)

    def _longest_run(self) -> tuple[int, int]:
        while True:
            length, start = self._longest[0]
            end = self._end.get(start)
            if end is not None and start - end == length:
                return start, end
            heappop(self._longest)
