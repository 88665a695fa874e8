"""Low-rank changes of linear maps, added to the rows of a step that belong to an adapter.

A step's packed rows are in order of their adapters, so that those of one are a slice: two small products a linear map
and adapter, `rows @ A^T` and `+= (rows @ A^T) @ (scale B^T)`, and nothing for rows of the base. The first product is
rounded to the model's dtype; the second is added to the base's rounded output and rounded once. `scale B` is made in
float32 and rounded to the model's dtype, which loses nothing where the scale is a power of two. A row's result does not
depend on which adapters the other rows have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch


class Pair(NamedTuple):
    """One change.

    Attributes:
        down: A transposed, [K, r].
        up: B transposed, times the scale, [r, N].
    """

    down: torch.Tensor
    up: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + self.up.nbytes


#: The changes of one decoder layer by the names of its linear maps; those that no adapter changes are not there.
Layer = Mapping[str, Pair]


class Layers(list[Layer]):
    """An adapter's changes of every decoder layer; others may refer to it weakly."""


class Group(NamedTuple):
    """The rows of one adapter in a step, and its changes."""

    rows: slice
    layers: Layers


def add(groups: Sequence[Group], layer: int, name: str, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
    """Add each group's change of one linear map, in place.

    Args:
        name: of the map, in `Group.layers[layer]`.
        inputs: [T, K], what the map was given; outputs: [T, N], what the base gave.
    """
    for rows, layers in groups:
        pair = layers[layer].get(name)
        if pair is not None:
            outputs[rows].addmm_(inputs[rows] @ pair.down, pair.up)


def within(groups: Sequence[Group], start: int, stop: int) -> list[Group]:
    """The groups of rows [start, stop), counted from `start`."""
    cut = []
    for rows, layers in groups:
        first, last = max(rows.start, start) - start, min(rows.stop, stop) - start
        if first < last:
            cut.append(Group(slice(first, last), layers))
    return cut


def side_by_side(parts: Sequence[tuple[Pair | None, int]]) -> Pair | None:
    """The changes of several maps of one input as that of their joined map; None where there are none.

    Each part's ranks reach its own outputs only: what it holds of the others' is zero.

    Args:
        parts: each map's change, if it has one, and its outputs N.
    """
    given = [pair for pair, _ in parts if pair is not None]
    if not given:
        return None
    rank = sum(pair.up.shape[0] for pair in given)
    up = given[0].up.new_zeros(rank, sum(width for _, width in parts))
    row = column = 0
    for pair, width in parts:
        if pair is not None:
            up[row : row + pair.up.shape[0], column : column + width] = pair.up
            row += pair.up.shape[0]
        column += width
    # Its transpose is what lies together: that is read faster where rows are few.
    return Pair(torch.cat([pair.down.t() for pair in given]).t(), up)


def layer_bytes(layers: Sequence[Mapping[str, Any]]) -> int:
    return sum(pair.nbytes for layer in layers for pair in layer.values())
