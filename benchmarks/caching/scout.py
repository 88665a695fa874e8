"""Thresholds that do something: a fixed list may lie where a model takes nothing from the cache, or everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from caching.contest import Contest
from caching.contestants import Contestant, Scouted
from sightline.progress import note
from sightline.video.request import Request

_LEAST, _MOST = 0.005, 2.0
_RUNS, _KEPT = 10, 5


def scout(contest: Contest, request: Request, quick: bool) -> tuple[Scouted, dict[str, str]]:
    """Calibrate MagCache and find thresholds for FirstBlockCache and DBCache.

    Args:
        request: one that is not measured later.

    Returns:
        And what failed, with its reason.
    """
    note("finding out which thresholds do something")
    failed: dict[str, str] = {}
    found: dict[str, Sequence[float]] = {}
    answer = contest.ask(Contestant("", "", "peer", "wan_pipeline", "mag", {"calibrate": True}), request)
    found["ratios"] = answer.told.get("mag_ratios", [])
    if answer.error:
        failed["MagCache"] = answer.error
    for name, engine, knob, others in (
        ("first_block", "wan_pipeline", "threshold", {}),
        ("dbcache", "cache_dit", "residual_diff_threshold", {"Fn_compute_blocks": 1, "max_warmup_steps": 4}),
    ):
        if engine not in contest.workers or quick:
            continue

        def calls(threshold: float, name: str = name, engine: str = engine, knob: str = knob) -> int:
            one = Contestant("", "", "peer", engine, name, {**others, knob: threshold})  # noqa: B023 (called at once)
            answer = contest.ask(one, request)
            if answer.error:
                raise _Failed(answer.error)
            return int(answer.told["calls"])

        try:
            found[name] = spread(calls)
        except _Failed as error:
            failed[name] = str(error)
    return Scouted(**found), failed


def spread(calls: Callable[[float], int], runs: int = _RUNS, kept: int = _KEPT) -> list[float]:
    """Thresholds whose computed calls lie as far apart as can be found.

    Args:
        calls: how many a threshold computes; fewer with a larger one.
        runs: how often it is asked.
        kept: how many thresholds.
    """
    known = {threshold: calls(threshold) for threshold in (_LEAST, _MOST)}
    for _ in range(runs - 2):
        ordered = sorted(known)
        gaps = [(known[low] - known[high], low, high) for low, high in pairwise(ordered)]
        gap, low, high = max(gaps)
        if gap <= 0:
            break
        middle = (low * high) ** 0.5
        known[middle] = calls(middle)
    useful = sorted(known)
    while len(useful) > kept:
        # The one whose neighbours are nearest to each other says least.
        inner = range(1, len(useful) - 1)
        useful.pop(min(inner, key=lambda at: abs(known[useful[at - 1]] - known[useful[at + 1]])))
    return useful


class _Failed(Exception):
    """An engine could not run; what it said."""
