"""How long samples are: bins with round edges, and percentiles."""

from __future__ import annotations

from collections.abc import Sequence

_STEPS = (1, 2, 5)


def histogram(values: Sequence[int], bins: int = 12) -> list[tuple[int, int, int]]:
    """(from, to, count) of at most `bins` equally wide bins with round edges, both ends included."""
    if not values:
        return []
    low, high = min(values), max(values)
    width = _round_width((high - low + 1) / bins)
    first = low // width
    while high // width - first >= bins:
        width = _round_width(width + 1)
        first = low // width
    counts = [0] * (high // width - first + 1)
    for value in values:
        counts[value // width - first] += 1
    return [((first + i) * width, (first + i + 1) * width - 1, count) for i, count in enumerate(counts)]


def _round_width(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, 50, ... that is at least `least`."""
    power = 1
    while True:
        for step in _STEPS:
            if step * power >= least:
                return step * power
        power *= 10


def percentile(values: Sequence[int], percent: float) -> int:
    """The smallest value that `percent` of the values do not exceed."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]
