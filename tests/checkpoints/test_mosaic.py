"""Mosaics against numpy: cutting, stacking, turning round and chaining random rectangles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.checkpoints.mosaic import (
    Mosaic,
    Tile,
    chained,
    check_whole,
    inverted,
    stacked,
    whole,
)
from sightline.errors import SightlineError

Array = np.ndarray[Any, Any]


def drawn(mosaic: Mosaic, sources: dict[Any, Array]) -> Array:
    """The mosaic as an array; -1 where no tile lies."""
    out = np.full((mosaic.rows, mosaic.columns), -1)
    for tile in mosaic.tiles:
        part = sources[tile.source][
            tile.from_row : tile.from_row + tile.rows, tile.from_column : tile.from_column + tile.columns
        ]
        place = out[tile.row : tile.row + tile.rows, tile.column : tile.column + tile.columns]
        assert (place == -1).all()
        place[:] = part
    return out


@st.composite
def patchworks(draw: st.DrawFn) -> tuple[dict[str, Array], dict[str, Mosaic], dict[str, Array]]:
    """Arrays; mosaics that use every number of them once, cut and stacked anyhow; and these mosaics as arrays."""
    columns = draw(st.integers(1, 6))
    arrays, pieces, start = {}, [], 0
    for name in "abc"[: draw(st.integers(1, 3))]:
        rows = draw(st.integers(1, 7))
        arrays[name] = np.arange(start, start + rows * columns).reshape(rows, columns)
        start += rows * columns
        cuts = sorted(draw(st.sets(st.integers(1, rows - 1)))) if rows > 1 else []
        mosaic = whole(name, (rows, columns))
        for top, bottom in zip([0, *cuts], [*cuts, rows], strict=True):
            pieces.append((mosaic.cut(top, bottom), arrays[name][top:bottom]))
    order = draw(st.permutations(range(len(pieces))))
    tall = stacked([pieces[index][0] for index in order])
    array = np.concatenate([pieces[index][1] for index in order])
    cuts = sorted(draw(st.sets(st.integers(1, columns - 1)))) if columns > 1 else []
    mosaics, expected = {}, {}
    for left, right in zip([0, *cuts], [*cuts, columns], strict=True):
        for top, bottom in ((0, tall.rows // 2), (tall.rows // 2, tall.rows)):
            if top < bottom:
                name = f"{left}.{top}"
                mosaics[name] = tall.cut_columns(left, right).cut(top, bottom)
                expected[name] = array[top:bottom, left:right]
    return arrays, mosaics, expected


@settings(max_examples=60, derandomize=True, deadline=None)
@given(patchworks())
def test_cut_stacked_turned_round_and_chained(case: Any) -> None:
    arrays, mosaics, expected = case
    for name, mosaic in mosaics.items():
        check_whole(name, mosaic)
        assert mosaic.shape == expected[name].shape
        assert (drawn(mosaic, arrays) == expected[name]).all()
    back = inverted(mosaics, {name: array.shape for name, array in arrays.items()})
    for name, array in arrays.items():
        assert (drawn(back[name], expected) == array).all()
    # There, back and there again is one step.
    again = chained(mosaics, back)
    for name, mosaic in again.items():
        check_whole(name, mosaic)
        assert (drawn(mosaic, expected) == expected[name]).all()


def test_shapes_with_more_dimensions_and_with_none() -> None:
    assert whole("a", (4, 3, 2)).cut(1, 3).shape == (2, 3, 2)
    assert whole("a", (4, 3, 2)).columns == 6
    assert whole("a", (5,)).cut(0, 2).shape == (2,)
    assert whole("a", ()).shape == ()
    check_whole("a", whole("a", ()))


def test_what_is_lost_or_double_is_found() -> None:
    shapes = {"a": (4, 2)}
    half = whole("a", (4, 2)).cut(0, 2)
    with pytest.raises(SightlineError, match=r"a of shape \[4, 2\].*4 numbers.*loses or doubles"):
        inverted({"x": half}, shapes)
    # The same rows for two are copies; rows that overlap are not.
    assert inverted({"x": half, "y": half, "z": whole("a", (4, 2)).cut(2, 4)}, shapes)["a"].rows == 4
    with pytest.raises(SightlineError, match="loses or doubles"):
        inverted({"x": half, "z": whole("a", (4, 2)).cut(1, 4)}, shapes)
    twice = Mosaic(2, (2,), (Tile("a", 0, 0, 1, 2), Tile("a", 0, 0, 1, 2)))
    with pytest.raises(SightlineError, match="loses or doubles"):
        check_whole("m", twice)
    with pytest.raises(SightlineError, match="cannot be stacked"):
        stacked([whole("a", (1, 2)), whole("b", (1, 3))])
