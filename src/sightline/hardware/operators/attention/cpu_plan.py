"""What a step of the CPU's attention reads: which sequences are read together, and where each other one lies."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from sightline.hardware.operators.attention.paged import Piece, Plan, packed_slots, runs

# Operators have a price of their own: filling up by so many tokens costs as much as one group more (measured).
_MOST_FILLED = 1024

Run = tuple[int, int]  # first slot and number of tokens


@dataclass
class Group:
    """Decoding sequences that are attended to together, over a copy of what they see.

    Attributes:
        rows: their places in the packed step.
        slots: int64 [sequences, most]: of each one's tokens, filled up with its own last one, for nothing else in the
            cache is sure to hold numbers.
        ends: int64 [sequences], tokens of each.
    """

    rows: list[int]
    slots: np.ndarray
    ends: np.ndarray
    _places: torch.Tensor | None = None

    @cached_property
    def index(self) -> slice | torch.Tensor:
        """The rows, for a tensor of the step."""
        first, last = self.rows[0], self.rows[-1]
        neighbours = last - first + 1 == len(self.rows)
        return slice(first, last + 1) if neighbours else torch.tensor(self.rows)

    @cached_property
    def unseen(self) -> torch.Tensor | None:
        """bool [sequences, 1, 1, most], True where a sequence is filled up; None where none is."""
        most = self.slots.shape[1]
        if (self.ends == most).all():
            return None
        return torch.from_numpy(np.arange(most) >= self.ends[:, None])[:, None, None]

    def places(self, heads: int, slots: int) -> torch.Tensor:
        """int64 [sequences * heads * most]: rows of a cache [heads * slots, D] with `slots` slots for each head."""
        if self._places is None:
            firsts = slots * np.arange(heads)
            self._places = torch.from_numpy((self.slots[:, None] + firsts[:, None]).ravel())
        return self._places


@dataclass
class CpuPlan(Plan):
    """Adds what decodes, together or alone, and each chunk of a prompt with the runs of its context."""

    groups: list[Group] = field(default_factory=list)
    alone: list[tuple[int, list[Run]]] = field(default_factory=list)
    chunks: list[tuple[slice, list[Run]]] = field(default_factory=list)


def make_plan(pieces: list[Piece], block_size: int, most: int) -> CpuPlan:
    """The step's decoding tokens in groups, which copy up to `most` tokens each, and its chunks of prompts."""
    plan = CpuPlan(
        pieces=pieces,
        tokens=sum(piece.length for piece in pieces),
        arrays={"slots": packed_slots(pieces, block_size)},
    )
    decoding: list[tuple[int, Piece]] = []
    start = 0
    for piece in pieces:
        if piece.length > 1:
            part = slice(start, start + piece.length)
            plan.chunks.append((part, runs(piece.table, piece.context, block_size)))
        else:
            decoding.append((start, piece))
        start += piece.length
    for group in _grouped(decoding, most):
        if len(group) == 1:
            ((row, piece),) = group
            plan.alone.append((row, runs(piece.table, piece.end, block_size)))
        else:
            plan.groups.append(_group(sorted(group, key=lambda one: one[0]), block_size))
    return plan


def _grouped(decoding: list[tuple[int, Piece]], most: int) -> list[list[tuple[int, Piece]]]:
    """Those of about one length, the longest first."""
    groups: list[list[tuple[int, Piece]]] = []
    longest = filled = 0
    for one in sorted(decoding, key=lambda one: -one[1].end):
        end = one[1].end
        if groups and filled + longest - end <= _MOST_FILLED and (len(groups[-1]) + 1) * longest <= most:
            groups[-1].append(one)
            filled += longest - end
        else:
            groups.append([one])
            longest, filled = end, 0
    return groups


def _group(members: list[tuple[int, Piece]], block_size: int) -> Group:
    ends = np.array([piece.end for _, piece in members])
    most = int(ends.max())
    blocks = -(-most // block_size)
    tables = np.zeros((len(members), blocks), np.int64)
    for row, (_, piece) in zip(tables, members, strict=True):
        table = piece.table[:blocks]
        row[: len(table)] = table
    places = np.minimum(np.arange(most), ends[:, None] - 1)
    slots = np.take_along_axis(tables, places // block_size, axis=1) * block_size + places % block_size
    return Group([row for row, _ in members], slots, ends)
