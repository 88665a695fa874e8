"""Runs that are looked at together: checks, differences, and which frames are shown."""

from __future__ import annotations

import pytest
import torch
from films import film

from sightline.errors import UsageError
from sightline.video.fidelity import compare
from sightline.video.sheets.comparison import Comparison, Shown, chosen_frames, difference


def test_figures_are_those_of_the_whole_frames() -> None:
    exact, near = film(), film(0.05)
    comparison = Comparison(Shown("exact", exact, 4.0), (Shown("near", near, 2.0),), "a disc")
    assert comparison.fidelity == (compare(near, exact),)
    assert comparison.psnr[0][0] == 100  # equal, and finite
    assert min(range(5), key=comparison.psnr[0].__getitem__) == comparison.fidelity[0].worst_frame
    (line,) = comparison.lines()
    assert (line.title, line.run, line.faster) == ("a disc", "near", 2.0)


def test_no_speed_up_without_both_times() -> None:
    exact, other = Shown("exact", film()), Shown("other", film(), 2.0)
    assert Comparison(exact, (other,)).faster(other) is None
    assert Comparison(other, (exact,)).faster(exact) is None


def test_runs_that_cannot_be_laid_over_one_another_are_refused() -> None:
    exact = Shown("exact", film())
    with pytest.raises(UsageError, match="exact has 5 frames and short 4"):
        Comparison(exact, (Shown("short", film(frames=4)),))
    with pytest.raises(UsageError, match="exact is 32x32 and small 16x16"):
        Comparison(exact, (Shown("small", film(side=16)),))
    with pytest.raises(UsageError, match=r"frames of flat must be \[frames, 3, height, width\]"):
        Comparison(Shown("flat", film()[:, :1]), ())
    with pytest.raises(UsageError, match="fps"):
        Comparison(exact, (), fps=0)


def test_a_difference_is_black_where_equal_and_amplified_elsewhere() -> None:
    one = torch.full((1, 3, 2, 2), 0.5)
    other = one.clone()
    other[0, 0, 0, 0] = 0.6
    found = difference(other, one, 4.0)
    assert found[0, 0, 0, 0] == pytest.approx(0.4)
    assert int((found > 0).sum()) == 1
    assert float(difference(other, one, 100.0).max()) == 1.0


@pytest.mark.parametrize(
    ("count", "columns", "worst", "expected"),
    [
        (17, 6, None, [0, 3, 6, 10, 13, 16]),
        (17, 6, 16, [0, 3, 6, 10, 13, 16]),
        (17, 6, 9, [0, 3, 6, 9, 13, 16]),
        (3, 6, 1, [0, 1, 2]),
        (1, 6, 0, [0]),
        (9, 1, 5, [5]),
    ],
)
def test_frames_are_even_and_the_worst_is_among_them(
    count: int, columns: int, worst: int | None, expected: list[int]
) -> None:
    assert chosen_frames(count, columns, worst) == expected
