"""The proof of a conversion: what was written, read back and turned round, against what it was made of."""

from __future__ import annotations

from pathlib import Path

from sightline.checkpoints.megatron.convert import open_back
from sightline.checkpoints.megatron.source import open_source
from sightline.checkpoints.tiling import planned
from sightline.checkpoints.writing import row_chunks
from sightline.errors import SightlineError
from sightline.progress import Progress


def verify(folder: str | Path, megatron: str | Path) -> int:
    """Compare a Hugging Face folder with a checkpoint of MindSpeed-MM, number by number; gives how many tensors.

    Raises:
        SightlineError: one differs; the text names it.
    """
    import torch

    source = open_source(folder)
    files, back = open_back(megatron, source.model)
    total = sum(entry.bytes for entry in source.entries.values())
    with Progress("verifying", total, "bytes") as progress:
        for name, entry in source.entries.items():
            made = planned(name, back[name], files.entries, files.descriptor)
            if made.dtype != entry.dtype:
                raise SightlineError(f"{megatron}: {name} is {made.dtype}, in {folder} {entry.dtype}")
            for first, last in row_chunks(entry):
                ours = made.rows(first, last).view(torch.uint8)
                if not torch.equal(
                    ours, entry.read_rows(source.descriptor(entry), first, last).view(torch.uint8)
                ):
                    raise SightlineError(
                        f"{megatron} does not give {name} of {folder} back: rows {first} to {last} differ"
                    )
            progress.advance(entry.bytes)
    return len(source.entries)
