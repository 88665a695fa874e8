"""Labels beside points of a plot, so that none covers another, a point or a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels

# Where a label may stand, by its own size: (share of its width to the left, of its height below, and the gap's signs).
_PLACES = (
    (0.0, 0.0, 1, 1),
    (1.0, 0.0, -1, 1),
    (0.0, 1.0, 1, -1),
    (1.0, 1.0, -1, -1),
    (0.0, 0.5, 1, 0),
    (1.0, 0.5, -1, 0),
    (0.5, 0.0, 0, 1),
    (0.5, 1.0, 0, -1),
)
_GAPS = (5.0, 11.0)  # points
_APART = 5.0  # points between the places of a line that are looked at


@dataclass(frozen=True)
class Label:
    """A text, the values of its point, and its colour."""

    text: str
    x: float
    y: float
    colour: str


def place_labels(
    axis: Any, labels: Sequence[Label], points: Sequence[Point], lines: Sequence[Sequence[Point]] = ()
) -> int:
    """Write each text beside its point where there is room; earlier ones choose first.

    Args:
        axis: of a figure that was drawn once, so that its sizes are settled.
        points, lines: what is drawn there, in the axis's values.

    Returns:
        How many found no room and are not there.
    """
    renderer = axis.figure.canvas.get_renderer()
    pixel = axis.figure.dpi / 72
    frame = axis.get_window_extent(renderer)
    taken = [_around(axis.transData.transform(point), 4 * pixel) for point in points]
    taken += [_around(place, pixel) for line in lines for place in _along(axis, line, _APART * pixel)]
    left_out = 0
    for label in labels:
        text = axis.annotate(
            label.text,
            (label.x, label.y),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=7.5,
            color=label.colour,
            zorder=5,
        )
        text.set_in_layout(False)
        size = text.get_window_extent(renderer)
        x, y = axis.transData.transform((label.x, label.y))
        found = _free(x, y, size.width, size.height, pixel, taken, frame)
        if found is None:
            text.remove()
            left_out += 1
            continue
        text.set_position(((found[0] - x) / pixel, (found[1] - y) / pixel))
        taken.append(found)
    return left_out


def overlap(one: Box, other: Box) -> bool:
    """Whether two boxes share any of their area."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _around(place: Point, reach: float) -> Box:
    x, y = place
    return x - reach, y - reach, x + reach, y + reach


def _along(axis: Any, line: Sequence[Point], apart: float) -> list[Point]:
    """Places on a line in pixels, so near to each other that no text fits between."""
    corners = [axis.transData.transform(point) for point in line]
    found = []
    for (x, y), (right, up) in pairwise(corners):
        count = max(1, math.ceil(math.hypot(right - x, up - y) / apart))
        found += [(x + (right - x) * part / count, y + (up - y) * part / count) for part in range(count + 1)]
    return found


def _free(
    x: float, y: float, width: float, height: float, pixel: float, taken: Sequence[Box], frame: Any
) -> Box | None:
    """The first place beside a point that lies in the frame and touches nothing."""
    for gap in _GAPS:
        for left, below, right, up in _PLACES:
            one = x - left * width + right * gap * pixel
            two = y - below * height + up * gap * pixel
            box = (one, two, one + width, two + height)
            inside = frame.x0 <= box[0] and box[2] <= frame.x1 and frame.y0 <= box[1] and box[3] <= frame.y1
            if inside and not any(overlap(box, other) for other in taken):
                return box
    return None
