"""Shortest paths over denoising steps: which steps to compute when only so many may be.

A schedule is a path from step 0 to the end that touches the steps it computes. What a skipped step costs depends on the
last computed steps before it, so a node of the graph is the tuple of those; the edges out of it are the next steps that
may compute. One pass answers for every number of computed steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

History = tuple[int, ...]  # computed steps, the newest first
Cost = Callable[[History, int], float]  # what skipping a step costs after these


@dataclass(frozen=True)
class Path:
    """The best schedule with so many computed steps.

    Attributes:
        steps: those that are computed, rising.
        total: the sum of the costs of the others.
        worst: the largest of them.
    """

    steps: tuple[int, ...]
    total: float
    worst: float


def best_paths(
    steps: int,
    cost: Cost,
    *,
    memory: int = 1,
    longest: int = 6,
    form: str = "sum",
    allowed: Collection[int] | None = None,
    counts: Collection[int] | None = None,
) -> dict[int, Path]:
    """The best schedule for numbers of computed steps.

    Args:
        cost: of a step that is skipped after the `memory` newest computed steps (fewer at the beginning); infinite
            where it cannot be skipped, never negative.
        memory: how many computed steps a cost depends on.
        longest: how many steps in a row may be skipped.
        form: `sum` has the least total; `worst` the least largest cost, and among those schedules the least total.
        allowed: steps that may be computed; all without. Step 0 always is.
        counts: the numbers of computed steps that are asked for; all without.

    Returns:
        By number of computed steps; only numbers with a schedule of finite cost.
    """
    graph = _Graph(steps, cost, memory, longest, allowed)
    wanted = (
        range(1, steps + 1) if counts is None else sorted(count for count in counts if 1 <= count <= steps)
    )
    if not wanted:
        return {}
    if form == "sum":
        return graph.solve(wanted, np.add)
    bottlenecks = graph.solve(wanted, np.maximum)
    # Where only the largest counts, the others are anything; a second pass without the larger edges adds up.
    found = {}
    for count, path in bottlenecks.items():
        found.update(graph.solve([count], np.add, path.worst))
    return found


class _Graph:
    """Nodes by their history, in an order in which edges lead forward."""

    def __init__(
        self, steps: int, cost: Cost, memory: int, longest: int, allowed: Collection[int] | None
    ) -> None:
        self.steps, self.memory = steps, memory
        self.edges: dict[
            History, list[tuple[History, float, float]]
        ] = {}  # to, sum and largest of what is skipped
        waiting: set[History] = {(0,)}
        while waiting:
            history = waiting.pop()
            self.edges[history] = []
            for after, total, worst in self._from(history, cost, longest, allowed):
                self.edges[history].append((after, total, worst))
                if after not in self.edges and after[0] < steps:
                    waiting.add(after)

    def _from(
        self, history: History, cost: Cost, longest: int, allowed: Collection[int] | None
    ) -> Iterator[tuple[History, float, float]]:
        total = worst = 0.0
        for step in range(history[0] + 1, self.steps + 1):
            if step == self.steps:
                yield (self.steps,), total, worst
            elif allowed is None or step in allowed:
                yield (step, *history)[: self.memory], total, worst
            if step == self.steps or step - history[0] > longest:
                return
            each = cost(history, step)
            if not each < math.inf:
                return
            total, worst = total + each, max(worst, each)

    def solve(self, counts: Sequence[int], join: np.ufunc, bound: float = math.inf) -> dict[int, Path]:
        """Least joined cost by node and number of computed steps, forward; then back along what was chosen."""
        most = max(counts)
        end = (self.steps,)
        best = {node: np.full(most + 1, math.inf) for node in (*self.edges, end)}
        came: dict[History, list[History | None]] = {node: [None] * (most + 1) for node in best}
        best[0,][1] = 0.0
        for node in sorted(self.edges):
            here = best[node]
            for after, total, worst in self.edges[node]:
                if worst > bound:
                    continue
                moved = join(here, total if join is np.add else worst)
                if after != end:
                    moved = np.concatenate(([math.inf], moved[:-1]))
                there, origin = best[after], came[after]
                for count in np.flatnonzero(moved < there):
                    there[count] = moved[count]
                    origin[count] = node
        return {count: self._back(came, count) for count in counts if best[end][count] < math.inf}

    def _back(self, came: dict[History, list[History | None]], count: int) -> Path:
        node: History = (self.steps,)
        computed: list[int] = []
        total = worst = 0.0
        left = count
        while node != (0,) or left > 1:
            before = came[node][left]
            assert before is not None
            sums = next(each for each in self.edges[before] if each[0] == node)
            total, worst = total + sums[1], max(worst, sums[2])
            if node[0] < self.steps:
                left -= 1
            node = before
            computed.append(node[0])
        return Path(tuple(reversed(computed)), total, worst)
