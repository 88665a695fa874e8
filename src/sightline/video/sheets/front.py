"""The front of a search or a benchmark as one PNG: how fast against how near to the exact run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import UsageError
from sightline.files import replacing
from sightline.video.sheets.labels import Label, place_labels

# Above this the eye sees no difference, and one exact run would press all others to the ground.
CEILING = 60.0
KINDS = {"ours": "ours", "baseline": "by rule", "peer": "of others"}
_COLOURS = {
    "ours": ("#1f4fbf", "#0f7f83", "#5b8def", "#123a7a"),
    "baseline": ("#3d4650", "#7c8791", "#a3adb6"),
    "peer": ("#c2571a", "#a3262f", "#8a6d00", "#83378a", "#e0609b", "#5b3a1e", "#3f7d3a"),
}
# As many as have no divisor in common with the colours, so that pairs come late again.
_MARKERS = {"ours": "oPh", "baseline": "xd+*1", "peer": "s^vD<>*p"}
_INK, _BAND = "#1b1f24", "#d7e3f7"


@dataclass(frozen=True)
class Row:
    """One setting that was measured.

    Attributes:
        label: what tells it from the others of its family, as "20 steps".
        family: what one line joins, as "fewer steps".
        kind: `ours`, `baseline` or `peer`.
        seconds: of the denoising loop.
        psnr: dB against the exact run, of the prompt where it is lowest; infinite where equal.

    Raises:
        UsageError: another kind, no time, or a PSNR that is no number.
    """

    label: str
    family: str
    kind: str
    seconds: float
    psnr: float

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if not (self.seconds > 0 and math.isfinite(self.seconds)) or math.isnan(self.psnr):
            raise UsageError(
                f"{self.label}: seconds must be above 0 and PSNR a number, not {self.seconds} and {self.psnr}"
            )


def pareto(rows: Sequence[Row]) -> list[Row]:
    """Those than which none is both as fast and as near, the fastest first; of equal ones the first."""
    found: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.seconds, -row.psnr)):
        if not found or row.psnr > found[-1].psnr:
            found.append(row)
    return found


def front(
    rows: Sequence[Row],
    path: str | Path,
    *,
    exact: float | None = None,
    title: str = "",
    quality: str = "PSNR of the worst prompt, dB",
) -> None:
    """Draw all rows, a line through the front of each family, and a band along the front of all.

    Points that another of their family beats are hollow. Labels that would cover another are left out.

    Args:
        exact: seconds of the uncached run; with it the axis is the speed-up over it.
        quality: names the other axis. Values far above the others, and above 60 dB, are drawn at the top.

    Raises:
        UsageError: no rows.
        SightlineError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not rows:
        raise UsageError("no rows to draw; give at least one")
    figure = Figure(figsize=(9.5, 5.6), dpi=140, layout="constrained", facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axis = figure.subplots()
    top = _top(rows)
    places = {
        row: ((row.seconds if exact is None else exact / row.seconds), min(row.psnr, top)) for row in rows
    }
    best = pareto(rows)
    x, y = zip(*(places[row] for row in best), strict=True)
    axis.plot(x, y, color=_BAND, linewidth=9, solid_capstyle="round", solid_joinstyle="round", zorder=1)
    colours, lines = {}, []
    for family, colour, marker in styles(rows):
        mine = [row for row in rows if row.family == family]
        lines.append(_line(axis, mine, places, colour, marker))
        colours[family] = colour
    _dress(
        axis,
        exact,
        quality + (f" ({top:.0f} and more at the top)" if any(row.psnr > top for row in rows) else ""),
    )
    axis.set_title(title, fontsize=10.5, loc="left", color=_INK)
    rest = [row for family in colours for row in pareto([one for one in rows if one.family == family])]
    labels = [Label(row.label, *places[row], colours[row.family]) for row in dict.fromkeys([*best, *rest])]
    canvas.draw()  # sizes are known only now
    place_labels(axis, labels, list(places.values()), lines)
    with replacing(path, "wb") as file:
        figure.savefig(file, format="png")


def styles(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """(family, colour, marker) of each family, ours first; the hue says whose it is."""
    found = []
    for kind, colours in _COLOURS.items():
        families = dict.fromkeys(row.family for row in rows if row.kind == kind)
        for number, family in enumerate(families):
            markers = _MARKERS[kind]
            found.append((family, colours[number % len(colours)], markers[number % len(markers)]))
    return found


def _top(rows: Sequence[Row]) -> float:
    """Where the exact run is drawn: a little above what is not exact."""
    below = [row.psnr for row in rows if row.psnr <= CEILING]
    return min(CEILING, 5 * math.ceil((max(below) + 2) / 5)) if below else CEILING


def _line(
    axis: Any, rows: Sequence[Row], places: Mapping[Row, tuple[float, float]], colour: str, marker: str
) -> list[tuple[float, float]]:
    """Draw a family; gives the points of its line."""
    best = pareto(rows)
    line = [places[row] for row in best]
    mine = rows[0].kind == "ours"
    axis.plot(
        *zip(*line, strict=True),
        color=colour,
        marker=marker,
        markersize=6 if mine else 5.5,
        linewidth=1.9 if mine else 1.1,
        label=rows[0].family,
        zorder=4 if mine else 3,
    )
    beaten = [places[row] for row in rows if row not in best]
    if beaten:
        style = {"color": colour, "marker": marker, "markersize": 4, "alpha": 0.55, "zorder": 2}
        style |= {"markerfacecolor": "white"} if marker not in "x+1" else {}
        axis.plot(*zip(*beaten, strict=True), linestyle="", **style)
    return line


def _dress(axis: Any, exact: float | None, quality: str) -> None:
    axis.set(
        xlabel="seconds of denoising" if exact is None else "times as fast as the exact run",
        ylabel=quality,
    )
    axis.margins(x=0.08, y=0.07)
    if exact is None:
        axis.set_xlim(left=0)
    axis.grid(alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=2.4)
