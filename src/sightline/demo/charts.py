"""The demo's two pictures: the loss curve as coordinates for the page, the bar chart of accuracy as a PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.files import replacing


@dataclass(frozen=True)
class Curve:
    """A curve in a box of 100 x 100, y downwards; ticks are (percent of the axis, label)."""

    raw: str
    smooth: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    first: float
    last: float
    steps: int


def loss_curve(entries: Sequence[Mapping[str, Any]]) -> Curve | None:
    """The training loss of a log over its steps; None where fewer than two losses were logged."""
    from sightline.training.curves import smooth

    found = [
        (entry["step"], entry["loss"]) for entry in entries if math.isfinite(entry.get("loss", math.nan))
    ]
    if len(found) < 2:
        return None
    steps, losses = [step for step, _ in found], [loss for _, loss in found]
    y_ticks = ticks(max(losses))
    top, right = y_ticks[-1], steps[-1]

    def points(values: Sequence[float]) -> str:
        pairs = zip(steps, values, strict=True)
        return " ".join(f"{100 * step / right:.2f},{100 - 100 * value / top:.2f}" for step, value in pairs)

    average = smooth(losses, 0.6)
    return Curve(
        raw=points(losses),
        smooth=points(average),
        x_ticks=[(100 * tick / right, f"{tick:,.0f}") for tick in ticks(right, whole=True) if tick <= right],
        y_ticks=[(100 * tick / top, f"{tick:g}") for tick in y_ticks],
        first=losses[0],
        last=average[-1],
        steps=right,
    )


def ticks(largest: float, *, whole: bool = False) -> list[float]:
    """Three to six round values from 0 to at least `largest`: multiples of 1, 2 or 5 times a power of ten."""
    rough = max(largest, 1e-9) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    step = max(1.0, step) if whole else step
    return [round(step * index, 10) for index in range(math.ceil(largest / step - 1e-9) + 1)]


def draw_accuracy(kinds: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Bars of the accuracy before and after for each kind, with the share that guessing would get.

    Args:
        kinds: name -> {"before", "after", "guess"} as shares (guess may be None) and "questions".
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    width = 0.36
    for place, (name, color) in enumerate((("before", "#9aa5b1"), ("after", "#2563c9"))):
        x = [index + (place - 0.5) * width for index in range(len(kinds))]
        bars = axis.bar(
            x, [100 * kind[name] for kind in kinds.values()], width * 0.94, color=color, label=name
        )
        axis.bar_label(bars, fmt="%.0f %%", padding=2, fontsize=9)
    guesses = [
        (index, kind["guess"]) for index, kind in enumerate(kinds.values()) if kind["guess"] is not None
    ]
    axis.hlines(
        [100 * guess for _, guess in guesses],
        [index - width for index, _ in guesses],
        [index + width for index, _ in guesses],
        colors="#111111",
        linestyles="dotted",
        linewidth=1.4,
        label="guessing",
    )
    axis.set_xticks(
        range(len(kinds)), [f"{name}\n{kind['questions']} questions" for name, kind in kinds.items()]
    )
    axis.set(ylabel="right answers, %", ylim=(0, 112), yticks=range(0, 101, 20))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.25)
    axis.set_axisbelow(True)
    handles, names = axis.get_legend_handles_labels()
    order = [names.index(name) for name in ("before", "after", "guessing")]
    axis.legend(
        [handles[index] for index in order],
        [names[index] for index in order],
        frameon=False,
        ncols=3,
        loc="upper center",
        bbox_to_anchor=(0.5, 1.14),
    )
    with replacing(path, "wb") as file:
        figure.savefig(file, format="png", dpi=140)
