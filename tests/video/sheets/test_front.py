"""The plot of a front: which rows are on it, and that its labels can be read."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from sightline.errors import UsageError
from sightline.video.sheets.front import Row, front, pareto, styles
from sightline.video.sheets.labels import Label, overlap, place_labels


def row(seconds: float, psnr: float, family: str = "plans", kind: str = "ours", label: str = "") -> Row:
    return Row(label or f"{seconds:g}", family, kind, seconds, psnr)


def test_a_row_is_on_the_front_when_none_is_both_as_fast_and_as_near() -> None:
    best = [row(1.0, 20.0), row(2.0, 30.0), row(4.0, math.inf)]
    beaten = [row(2.0, 29.0), row(3.0, 30.0), row(1.5, 19.0)]
    assert pareto([*beaten, *best]) == best
    twice = [row(1.0, 20.0, label="first"), row(1.0, 20.0, label="second")]
    assert pareto(twice) == twice[:1]


@pytest.mark.parametrize(
    ("kind", "seconds", "psnr"),
    [("mine", 1, 1), ("ours", 0, 1), ("ours", math.inf, 1), ("ours", 1, math.nan)],
)
def test_a_row_that_cannot_be_drawn_is_refused(kind: str, seconds: float, psnr: float) -> None:
    with pytest.raises(UsageError):
        row(seconds, psnr, kind=kind)


def test_families_differ_in_colour_or_marker_and_kinds_in_hue() -> None:
    rows = [
        row(1, 1, f"{kind} {number}", kind) for kind in ("peer", "baseline", "ours") for number in range(12)
    ]
    found = styles(rows)
    assert len({style for _, *style in map(list, found) for style in [tuple(style)]}) == 36
    assert found[0][0] == "ours 0"
    hues = {kind: {colour for name, colour, _ in found if name.startswith(kind)} for kind in ("ours", "peer")}
    assert hues["ours"].isdisjoint(hues["peer"])


def test_the_plot_is_written_light_and_of_fixed_size(tmp_path: Path) -> None:
    from PIL import Image

    rows = [row(1, 25, label="2x"), row(1.2, 24, "threshold", "peer"), row(2, math.inf, "exact", "baseline")]
    front(rows, tmp_path / "seconds.png", title="a plot")
    front(rows, tmp_path / "speed.png", exact=2.0)
    with Image.open(tmp_path / "seconds.png") as picture:
        assert picture.size == (1330, 784)
        assert picture.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
    assert (tmp_path / "seconds.png").read_bytes() != (tmp_path / "speed.png").read_bytes()
    with pytest.raises(UsageError, match="no rows"):
        front([], tmp_path / "none.png")


def test_labels_touch_neither_each_other_nor_points_nor_lines() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 3), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.set(xlim=(0, 10), ylim=(0, 10))
    canvas.draw()
    points = [(1 + 0.4 * number, 2 + 0.4 * number) for number in range(12)]
    labels = [Label(f"setting {number}", x, y, "black") for number, (x, y) in enumerate(points)]
    left_out = place_labels(axis, labels, points, [points])
    renderer = canvas.get_renderer()
    boxes = [text.get_window_extent(renderer).extents for text in axis.texts]
    assert 0 < len(boxes) == 12 - left_out
    assert not any(overlap(one, other) for one in boxes for other in boxes if one is not other)
    for point in points:
        x, y = axis.transData.transform(point)
        assert not any(box[0] < x < box[2] and box[1] < y < box[3] for box in boxes)
    frame = axis.get_window_extent(renderer).extents
    assert all(frame[0] <= box[0] and box[2] <= frame[2] for box in boxes)


def test_a_label_without_room_is_left_out() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1), dpi=50)
    FigureCanvasAgg(figure).draw()
    axis = figure.subplots()
    label = Label("far too long for such a small plot", 0.5, 0.5, "black")
    assert place_labels(axis, [label], [(0.5, 0.5)]) == 1
    assert not axis.texts
