"""The proof of a conversion: what was written, read back and turned round, against what it was made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from sightline.checkpoints.entry import Entry
from sightline.checkpoints.megatron import wan
from sightline.checkpoints.megatron.convert import open_back
from sightline.checkpoints.megatron.files import MegatronFiles
from sightline.checkpoints.megatron.source import open_source
from sightline.checkpoints.mosaic import whole
from sightline.checkpoints.tiling import planned
from sightline.checkpoints.writing import Planned, row_chunks
from sightline.errors import SightlineError
from sightline.progress import Progress


def verify(folder: str | Path, megatron: str | Path) -> int:
    """Compare a Hugging Face folder with a checkpoint of MindSpeed-MM, number by number; gives how many tensors.

    Raises:
        SightlineError: one differs; the text names it.
    """
    source = open_source(folder)
    files, back = open_back(megatron, source.model)

    def made() -> Iterator[tuple[Planned, Entry]]:
        for name, entry in source.entries.items():
            yield planned(name, back[name], files.entries, files.descriptor), entry

    return _compare(
        made(), source.descriptor, f"{megatron} does not give {{}} of {folder} back", _bytes(source.entries)
    )


def verify_wan(folder: str | Path, megatron: str | Path) -> int:
    """The same for Wan's transformer."""
    store, _ = wan.open_wan(folder)
    files = MegatronFiles(megatron)
    back = wan.names_back(files.entries, wan.stages_of(files))

    def made() -> Iterator[tuple[Planned, Entry]]:
        for name, entry in store.entries.items():
            if name not in back:
                raise SightlineError(f"{megatron} lacks {name} of {folder}")
            place = back[name]
            mosaic = whole(place, files.entries[place].shape)
            yield planned(name, mosaic, files.entries, files.descriptor), entry

    def descriptor(entry: Entry) -> int:
        return store.descriptor(entry.file)

    return _compare(
        made(), descriptor, f"{megatron} does not give {{}} of {folder} back", _bytes(store.entries)
    )


def _compare(
    pairs: Iterator[tuple[Planned, Entry]], descriptor: Callable[[Entry], int], fault: str, total: int
) -> int:
    import torch

    count = 0
    with Progress("verifying", total, "bytes") as progress:
        for made, entry in pairs:
            if (made.dtype, made.shape) != (entry.dtype, entry.shape):
                raise SightlineError(
                    f"{fault.format(made.name)}: it is {made.dtype} {list(made.shape)}, not {entry.dtype} "
                    f"{list(entry.shape)}"
                )
            for first, last in row_chunks(entry):
                ours = made.rows(first, last).view(torch.uint8)
                if not torch.equal(ours, entry.read_rows(descriptor(entry), first, last).view(torch.uint8)):
                    raise SightlineError(f"{fault.format(made.name)}: rows {first} to {last} differ")
            progress.advance(entry.bytes)
            count += 1
    return count


def _bytes(entries: dict[str, Entry]) -> int:
    return sum(entry.bytes for entry in entries.values())
