"""What adapters change in the rows of one step: adapter by adapter, or all at once where rows are few.

A step that decodes has a row or two of each adapter, and what products of this size cost is their number, not their
size. When such a step has the same adapters as the one before it, their changes are put side by side: one product of
all rows with all A, where what is not a row's own is set to zero, and one with all B. The zeros add nothing, so that
the sums are the same.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch

from sightline.models.adapters.low_rank import Group, Layer, Layers, Pair, add, within

# Rows up to which products cost about the same whatever their size.
_FEW = 64


class Stack:
    """The changes of several adapters side by side, for each linear map when it is first asked for."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[int, str], tuple[Pair, tuple[int, ...]] | None] = {}

    def pair(self, groups: Sequence[Group], layer: int, name: str) -> tuple[Pair, tuple[int, ...]] | None:
        """The change of all adapters, and the rank of each; None where none changes this map."""
        if (layer, name) not in self._pairs:
            self._pairs[layer, name] = _stacked([group.layers[layer] for group in groups], name)
        return self._pairs[layer, name]


class Changes:
    """Of one step.

    Args:
        groups: the rows of each adapter.
        stack: of these adapters in this order; None adds one adapter after the other.
        rows: of the step.
    """

    def __init__(self, groups: Sequence[Group], stack: Stack | None = None, rows: int = 0) -> None:
        self._groups = groups
        self._stack = stack
        self._rows = rows
        self._foreign: dict[tuple[int, ...], torch.Tensor] = {}

    def add(self, layer: int, name: str, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """Add to what the base made of `inputs` [T, K], which is `outputs` [T, N], in place."""
        if self._stack is None:
            add(self._groups, layer, name, inputs, outputs)
            return
        found = self._stack.pair(self._groups, layer, name)
        if found is not None:
            pair, ranks = found
            inside = (inputs @ pair.down).masked_fill_(self._mask(ranks, inputs.device), 0)
            outputs.addmm_(inside, pair.up)

    def within(self, start: int, stop: int) -> Changes:
        """Of the rows [start, stop), counted from `start`."""
        return Changes(within(self._groups, start, stop))

    def _mask(self, ranks: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """True at [row, rank] where the rank is not of the row's adapter."""
        if ranks not in self._foreign:
            mask = torch.ones(self._rows, sum(ranks), dtype=torch.bool, device=device)
            column = 0
            for group, rank in zip(self._groups, ranks, strict=True):
                mask[group.rows, column : column + rank] = False
                column += rank
            self._foreign[ranks] = mask
        return self._foreign[ranks]


class Stacks:
    """Makes the changes of each step, and remembers the adapters of the last one; keeps none of them in memory."""

    def __init__(self) -> None:
        self._last: tuple[weakref.ref[Layers], ...] = ()
        self._stack: Stack | None = None

    def changes(self, groups: Sequence[Group], rows: int) -> Changes:
        """
        Args:
            groups: at least one, in an order that the next step keeps.
            rows: of the step.
        """
        if len(groups) < 2 or rows > _FEW:
            return Changes(groups)
        same = len(self._last) == len(groups) and all(
            last() is group.layers for last, group in zip(self._last, groups, strict=True)
        )
        if same:
            self._stack = self._stack or Stack()
        else:
            # To put adapters side by side takes as long as some steps; these may not meet again.
            self._stack = None
            self._last = tuple(weakref.ref(group.layers, self._forget) for group in groups)
        return Changes(groups, self._stack, rows)

    def _forget(self, gone: Any) -> None:
        """An adapter has left memory; so shall its copy."""
        if gone in self._last:
            self._last, self._stack = (), None


def _stacked(layers: Sequence[Layer], name: str) -> tuple[Pair, tuple[int, ...]] | None:
    pairs = [layer.get(name) for layer in layers]
    given = [pair for pair in pairs if pair is not None]
    if not given:
        return None
    # A's transpose is what lies together: that is read faster where rows are few.
    down = torch.cat([pair.down.t() for pair in given]).t()
    ranks = tuple(0 if pair is None else pair.up.shape[0] for pair in pairs)
    return Pair(down, torch.cat([pair.up for pair in given])), ranks
