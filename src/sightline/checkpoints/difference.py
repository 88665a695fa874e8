"""Two sets of weights, tensor by tensor: which differ, and by how much."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.checkpoints.entry import Entry
from sightline.checkpoints.store import Store
from sightline.checkpoints.writing import row_chunks
from sightline.progress import Progress

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class TensorDifference:
    """
    Attributes:
        largest: absolute difference of two numbers, nan where only one of them is nan.
        relative: norm of the difference over the norm of the first tensor.
        numbers: how many differ; of one type bit for bit, so that 0.0 and -0.0 do.
    """

    name: str
    largest: float
    relative: float
    numbers: int


@dataclass
class Difference:
    """
    Attributes:
        equal: tensors that are the same, bit for bit.
        differing: the others that both have, the largest first.
        reshaped: of another shape or type: name, first, second.
        only_first, only_second: that the other one lacks.
    """

    equal: int = 0
    differing: list[TensorDifference] = field(default_factory=list)
    reshaped: list[tuple[str, str, str]] = field(default_factory=list)
    only_first: list[str] = field(default_factory=list)
    only_second: list[str] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return not (self.differing or self.reshaped or self.only_first or self.only_second)


def difference(first: str | Path, second: str | Path) -> Difference:
    """Compare two folders or files of safetensors. Names of transformers' generations are taken as one.

    Tensors of another type are compared as numbers and told as reshaped too.

    Raises:
        SightlineError: one of them cannot be read.
    """
    ours, theirs = _entries(first), _entries(second)
    found = Difference(
        only_first=sorted(set(ours.entries) - set(theirs.entries)),
        only_second=sorted(set(theirs.entries) - set(ours.entries)),
    )
    common = [name for name in ours.entries if name in theirs.entries]
    total = sum(ours.entries[name].bytes for name in common)
    with Progress("comparing", total, "bytes") as progress:
        for name in common:
            one, other = ours.entries[name], theirs.entries[name]
            if (one.dtype, one.shape) != (other.dtype, other.shape):
                found.reshaped.append((name, _words(one), _words(other)))
            if one.shape == other.shape:
                told = _compared(name, one, other, ours.store, theirs.store)
                if told is not None:
                    found.differing.append(told)
                elif one.dtype == other.dtype:
                    found.equal += 1
            progress.advance(one.bytes)
    found.differing.sort(key=lambda one: -one.relative if one.relative == one.relative else float("-inf"))
    return found


@dataclass(frozen=True)
class _Named:
    store: Store
    entries: dict[str, Entry]


def _entries(path: str | Path) -> _Named:
    store = Store(path)
    return _Named(store, store.by_canonical_name())


def _compared(name: str, one: Entry, other: Entry, first: Store, second: Store) -> TensorDifference | None:
    """How two tensors of one shape differ, None where they do not."""
    import torch

    def alike(begin: int, end: int) -> bool:
        ours = one.read_rows(first.descriptor(one.file), begin, end)
        theirs = other.read_rows(second.descriptor(other.file), begin, end)
        return torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))

    if one.dtype == other.dtype and all(alike(*part) for part in row_chunks(one)):
        return None
    largest, squares, norm, numbers = 0.0, 0.0, 0.0, 0
    for begin, end in row_chunks(one):
        ours = one.read_rows(first.descriptor(one.file), begin, end)
        theirs = other.read_rows(second.descriptor(other.file), begin, end)
        if ours.dtype == theirs.dtype and torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8)):
            norm += float(_wide(ours).square().sum())
            continue
        wide, change = _wide(ours), _wide(theirs)
        change = change - wide
        both = wide.isnan() & _wide(theirs).isnan()
        change[both | (wide == _wide(theirs))] = 0.0
        numbers += int(_differing(ours, theirs, change).sum())
        largest = max(largest, float(change.abs().max())) if not change.isnan().any() else float("nan")
        squares += float(change.square().sum())
        norm += float(wide.square().sum())
    if numbers == 0:
        return None
    return TensorDifference(name, largest, (squares / norm) ** 0.5 if norm else float("inf"), numbers)


def _differing(ours: torch.Tensor, theirs: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
    """Which numbers are not the same: by their bytes, where both are of one type."""
    import torch

    if ours.dtype != theirs.dtype:
        return change != 0
    size = ours.element_size()
    one, other = (rows.contiguous().view(torch.uint8).reshape(-1, size) for rows in (ours, theirs))
    return (one != other).any(dim=1)


def _wide(rows: torch.Tensor) -> torch.Tensor:
    return rows.double()


def _words(entry: Entry) -> str:
    return f"{entry.dtype} {list(entry.shape)}"


def plain(found: Difference) -> dict[str, Any]:
    """As plain values, for JSON."""
    from dataclasses import asdict

    return {"same": found.same, **asdict(found)}
