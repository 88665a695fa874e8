"""Tensors put together of rectangles of other tensors: the whole of what a change of layout does.

Splitting over ranks, interleaving heads, joining gate and up, and all of it backwards move numbers without changing
one. So a layout is described once, in one direction, as mosaics; turning it round and chaining it with another are
operations on these descriptions, and that nothing is lost or written twice can be counted before a byte is read.

A tensor has rows (its first dimension) and columns (all the others together).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sightline.errors import SightlineError

Name = TypeVar("Name", bound=Hashable)
Source = TypeVar("Source", bound=Hashable)


@dataclass(frozen=True)
class Tile:
    """A rectangle of `source` from (from_row, from_column), which lies at (row, column) of the mosaic."""

    source: Hashable
    row: int
    column: int
    rows: int
    columns: int
    from_row: int = 0
    from_column: int = 0

    def moved(self, rows: int, columns: int) -> Tile:
        return replace(self, row=self.row + rows, column=self.column + columns)

    def within(self, top: int, bottom: int, left: int, right: int) -> Tile | None:
        """What of it lies in this window, still where it is."""
        first, last = max(self.row, top), min(self.row + self.rows, bottom)
        begin, end = max(self.column, left), min(self.column + self.columns, right)
        if first >= last or begin >= end:
            return None
        down, along = first - self.row, begin - self.column
        return Tile(
            self.source,
            first,
            begin,
            last - first,
            end - begin,
            self.from_row + down,
            self.from_column + along,
        )


@dataclass(frozen=True)
class Mosaic:
    """A tensor of tiles.

    Attributes:
        tail: its shape behind the first dimension, None for a number without dimensions.
    """

    rows: int
    tail: tuple[int, ...] | None
    tiles: tuple[Tile, ...]

    @property
    def columns(self) -> int:
        columns = 1
        for size in self.tail or ():
            columns *= size
        return columns

    @property
    def shape(self) -> tuple[int, ...]:
        return () if self.tail is None else (self.rows, *self.tail)

    def cut(self, top: int, bottom: int) -> Mosaic:
        """Its rows from `top` up to `bottom`."""
        tiles = [tile.within(top, bottom, 0, self.columns) for tile in self.tiles]
        return Mosaic(bottom - top, self.tail, tuple(tile.moved(-top, 0) for tile in tiles if tile))

    def cut_columns(self, left: int, right: int) -> Mosaic:
        """Its columns from `left` up to `right`; it has two dimensions."""
        tiles = [tile.within(0, self.rows, left, right) for tile in self.tiles]
        return Mosaic(self.rows, (right - left,), tuple(tile.moved(0, -left) for tile in tiles if tile))


def whole(source: Hashable, shape: Sequence[int]) -> Mosaic:
    """A tensor as it is."""
    tail = tuple(shape[1:]) if shape else None
    rows = shape[0] if shape else 1
    mosaic = Mosaic(rows, tail, ())
    return replace(mosaic, tiles=(Tile(source, 0, 0, rows, mosaic.columns),))


def stacked(mosaics: Sequence[Mosaic]) -> Mosaic:
    """One under the other."""
    first, rows, tiles = mosaics[0], 0, []
    for mosaic in mosaics:
        if mosaic.tail != first.tail:
            raise SightlineError(f"tensors of {mosaic.shape} and {first.shape} cannot be stacked")
        tiles += [tile.moved(rows, 0) for tile in mosaic.tiles]
        rows += mosaic.rows
    return Mosaic(rows, first.tail, tuple(tiles))


def inverted(
    mosaics: Mapping[Name, Mosaic], shapes: Mapping[Source, tuple[int, ...]]
) -> dict[Source, Mosaic]:
    """The sources as mosaics of what was made of them.

    Where a part was given to several, the first of them is taken.

    Args:
        shapes: of the sources.

    Raises:
        SightlineError: a part of a source is in none of the mosaics.
    """
    found: dict[Hashable, list[Tile]] = {name: [] for name in shapes}
    for name, mosaic in mosaics.items():
        for tile in mosaic.tiles:
            back = Tile(name, tile.from_row, tile.from_column, tile.rows, tile.columns, tile.row, tile.column)
            if not any(_same_place(back, other) for other in found[tile.source]):
                found[tile.source].append(back)
    result = {}
    for source, shape in shapes.items():
        mosaic = replace(whole(source, shape), tiles=tuple(found[source]))
        check_whole(source, mosaic)
        result[source] = mosaic
    return result


def chained(mosaics: Mapping[Name, Mosaic], sources: Mapping[Source, Mosaic]) -> dict[Name, Mosaic]:
    """`mosaics` of tensors that are mosaics themselves, as mosaics of what those are made of."""
    return {name: replace(mosaic, tiles=tuple(_through(mosaic, sources))) for name, mosaic in mosaics.items()}


def _through(mosaic: Mosaic, sources: Mapping[Any, Mosaic]) -> Iterable[Tile]:
    for tile in mosaic.tiles:
        top, left = tile.from_row, tile.from_column
        for inner in sources[tile.source].tiles:
            part = inner.within(top, top + tile.rows, left, left + tile.columns)
            if part is not None:
                yield part.moved(tile.row - top, tile.column - left)


def check_whole(name: object, mosaic: Mosaic) -> None:
    """Every number of it comes from exactly one tile.

    Raises:
        SightlineError: a part is missing, or two tiles meet.
    """
    area = sum(tile.rows * tile.columns for tile in mosaic.tiles)
    if area != mosaic.rows * mosaic.columns or _overlap(mosaic.tiles):
        raise SightlineError(
            f"{name} of shape {list(mosaic.shape)} is made of parts with {area} numbers in all; this layout loses "
            "or doubles some"
        )


def _same_place(tile: Tile, other: Tile) -> bool:
    return (tile.row, tile.column, tile.rows, tile.columns) == (
        other.row,
        other.column,
        other.rows,
        other.columns,
    )


def _overlap(tiles: Sequence[Tile]) -> bool:
    """Whether two of them meet. Sorted by rows, a tile can only meet those that begin before it ends."""
    ordered = sorted(tiles, key=lambda tile: (tile.row, tile.column))
    for index, tile in enumerate(ordered):
        for other in ordered[index + 1 :]:
            if other.row >= tile.row + tile.rows:
                break
            if other.column < tile.column + tile.columns and tile.column < other.column + other.columns:
                return True
    return False
