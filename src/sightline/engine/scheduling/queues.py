"""Which sequences wait and which run, each in the order of their importance."""

from __future__ import annotations

from bisect import bisect_left, insort

from sightline.engine.scheduling.sequence import Sequence, Status


class Queues:
    """Both lists are sorted by `Sequence.order`. `departures` counts how often a running sequence left."""

    def __init__(self) -> None:
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.departures = 0

    def wait(self, sequence: Sequence) -> None:
        sequence.status = Status.WAITING
        insort(self.waiting, sequence, key=_order)

    def start(self, sequence: Sequence) -> None:
        """From waiting to running."""
        self.leave(sequence)
        sequence.status = Status.RUNNING
        insort(self.running, sequence, key=_order)

    def leave(self, sequence: Sequence) -> None:
        """Off its queue; one that was never put on any stays as it is."""
        runs = sequence.status is Status.RUNNING
        queue = self.running if runs else self.waiting
        place = bisect_left(queue, sequence.order, key=_order)
        if place < len(queue) and queue[place] is sequence:
            del queue[place]
            self.departures += runs

    def check_integrity(self, sequences: list[Sequence]) -> None:
        """Check the queues against all sequences there are.

        Raises:
            AssertionError: with a sentence, where they disagree.
        """
        for name, status in (("waiting", Status.WAITING), ("running", Status.RUNNING)):
            queue: list[Sequence] = getattr(self, name)
            assert queue == sorted(queue, key=_order), f"the {name} sequences are out of order"
            assert all(sequence.status is status for sequence in queue), f"a {name} sequence is not {name}"
            assert set(queue) <= set(sequences), f"a {name} sequence is of no known request"
        running = {sequence for sequence in sequences if sequence.status is Status.RUNNING}
        assert running == set(self.running), "a sequence runs that is not among the running ones"


def _order(sequence: Sequence) -> tuple[int, int, int]:
    return sequence.order
