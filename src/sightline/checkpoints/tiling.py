"""Mosaics read from disk: rows of a tensor that is made of rectangles of stored ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sightline.checkpoints.entry import Entry, torch_dtype
from sightline.checkpoints.mosaic import Mosaic, Tile
from sightline.checkpoints.writing import Planned
from sightline.errors import SightlineError

if TYPE_CHECKING:
    import torch

Descriptor = Callable[[Entry], int]


def planned(name: str, mosaic: Mosaic, entries: Mapping[Any, Entry], descriptor: Descriptor) -> Planned:
    """A tensor that is written as a mosaic of stored ones.

    Args:
        entries: by what the tiles call their sources.
        descriptor: opens the file of one.

    Raises:
        SightlineError: its sources are of different types.
    """
    dtypes = {entries[tile.source].dtype for tile in mosaic.tiles}
    if len(dtypes) != 1:
        sources = sorted({str(tile.source) for tile in mosaic.tiles})
        raise SightlineError(
            f"{name} is put together of {', '.join(sources[:3])}, which are stored as "
            f"{' and '.join(sorted(dtypes))}; save them in one type"
        )
    (dtype,) = dtypes

    def rows(first: int, last: int) -> torch.Tensor:
        import torch

        part = mosaic.cut(first, last)
        if len(part.tiles) == 1:
            return _read(part.tiles[0], entries, descriptor)
        out = torch.empty(part.rows, part.columns, dtype=torch_dtype(dtype))
        for tile in part.tiles:
            target = out[tile.row : tile.row + tile.rows, tile.column : tile.column + tile.columns]
            target.copy_(_read(tile, entries, descriptor))
        return out

    return Planned(name, dtype, mosaic.shape, rows)


def _read(tile: Tile, entries: Mapping[Any, Entry], descriptor: Descriptor) -> torch.Tensor:
    entry = entries[tile.source]
    top, left = tile.from_row, tile.from_column
    return entry.read_rectangle(descriptor(entry), top, top + tile.rows, left, left + tile.columns)
