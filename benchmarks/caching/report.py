"""From what was measured to the table, the plot and the one number: how much faster at the same fidelity."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from caching.contest import Result
from caching.contestants import EXACT
from sightline.video.sheets.front import Row, pareto

Cell = str | float | None


def rows(results: Sequence[Result], measure: str = "seconds") -> list[Row]:
    """What can be drawn; `measure` is `seconds`, or `operations` in units of 1e9 in their place."""
    found = []
    for result in results:
        if result.error or not result.seconds:
            continue
        one = result.contestant
        value = result.median if measure == "seconds" else result.operations / 1e9
        found.append(Row(one.label, one.family, one.kind, value, result.worst.psnr))
    return found


def table(results: Sequence[Result], rate: float) -> list[dict[str, Cell]]:
    """One line a contestant.

    Args:
        rate: operations a second of a large matrix product on the same threads.
    """
    exact = {one.contestant.label: one for one in results if one.contestant.family == EXACT}
    lines: list[dict[str, Cell]] = []
    for result in results:
        one = result.contestant
        line: dict[str, Cell] = {"": one.name}
        if result.error:
            lines.append({**line, "seconds": f"failed: {result.error}"})
            continue
        own = exact["ours" if one.engine == "ours" else "diffusers"]
        lines.append(
            {
                **line,
                "seconds": f"{result.median:.3f}",
                "times as fast": f"{exact['diffusers'].median / result.median:.2f}",
                "as its own exact run": f"{own.median / result.median:.2f}",
                "calls": f"{result.told['calls']}" if "calls" in result.told else None,
                "GFLOP": f"{result.operations / 1e9:.3g}",
                "of the ceiling": f"{100 * result.operations / result.median / rate:.0f} %",
                "PSNR, worst prompt": f"{result.worst.psnr:.1f}",
                "median": f"{result.psnr_median:.1f}",
                "SSIM, worst": f"{min(found.ssim for found in result.fidelity):.3f}",
            }
        )
    return lines


def headline(results: Sequence[Result], measure: str = "seconds") -> dict[str, Any]:
    """Ours against the best peer at equal PSNR of the worst prompt.

    Each of our settings is held against the front of all peers' settings, between two of which the cost is read off a
    line (so a peer is granted settings that nobody measured). Only where the peers' front reaches: below its least
    PSNR and above its largest nothing is said.

    Returns:
        `points`: PSNR, ours, the best peer's cost there and the ratio, a setting each; `median`, `least`, `most` of
        the ratios; empty points where the ranges do not meet.
    """
    found = rows([one for one in results if one.contestant.family != EXACT], measure)
    ours = pareto([row for row in found if row.kind == "ours"])
    peers = pareto([row for row in found if row.kind == "peer"])
    points: list[dict[str, Any]] = []
    for row in ours:
        cost = cost_at(peers, row.psnr)
        if cost is not None:
            points.append(
                {
                    "label": row.label,
                    "psnr": row.psnr,
                    "ours": row.seconds,
                    "peer": cost,
                    "ratio": cost / row.seconds,
                }
            )
    ratios = [point["ratio"] for point in points]
    summary = (
        {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)} if ratios else {}
    )
    return {"measure": measure, "points": points, **summary}


def cost_at(front: Sequence[Row], psnr: float) -> float | None:
    """What the front costs at a PSNR, between two of its settings along a line; None where it does not reach.

    Args:
        front: fastest first, so PSNR rises.
    """
    if not front or not front[0].psnr <= psnr <= front[-1].psnr:
        return None
    for low, high in pairwise(front):
        if low.psnr <= psnr <= high.psnr:
            if math.isinf(high.psnr):
                return high.seconds
            share = (psnr - low.psnr) / (high.psnr - low.psnr)
            return low.seconds + share * (high.seconds - low.seconds)
    return front[0].seconds


def plain(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Everything, for the JSON."""
    return [
        {
            "family": result.contestant.family,
            "label": result.contestant.label,
            "kind": result.contestant.kind,
            "engine": result.contestant.engine,
            "method": result.contestant.method,
            "knobs": result.contestant.knobs,
            "steps": result.contestant.steps,
            "seconds": result.seconds,
            "seconds_median": result.median if result.seconds else None,
            "operations": result.operations,
            "fidelity": [found.numbers() for found in result.fidelity],
            "psnr_worst_prompt": result.worst.psnr if result.fidelity else None,
            "told": result.told,
            "error": result.error,
        }
        for result in results
    ]
