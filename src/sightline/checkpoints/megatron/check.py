"""The proof of a conversion: what was written, read back and turned round, against what it was made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sightline.checkpoints.entry import Entry
from sightline.checkpoints.megatron import lora, wan
from sightline.checkpoints.megatron.architecture import Architecture
from sightline.checkpoints.megatron.convert import open_back
from sightline.checkpoints.megatron.detect import architecture_of
from sightline.checkpoints.megatron.files import MegatronFiles
from sightline.checkpoints.megatron.layout import Layout
from sightline.checkpoints.megatron.source import open_source
from sightline.checkpoints.mosaic import Mosaic, whole
from sightline.checkpoints.store import read_config
from sightline.checkpoints.tiling import planned
from sightline.checkpoints.writing import Planned, row_chunks
from sightline.errors import SightlineError
from sightline.progress import Progress

Tensors = dict[str, Planned]


def verify(folder: str | Path, megatron: str | Path) -> int:
    """Compare a Hugging Face folder with a checkpoint of MindSpeed-MM, number by number; gives how many tensors.

    Raises:
        SightlineError: one differs; the text names it.
    """
    source = open_source(folder)
    files, back = open_back(megatron, source.model)
    return _compare(_stored(source.entries, source.descriptor), _made(files, back), folder, megatron)


def verify_resplit(first: str | Path, second: str | Path, template: str | Path | None = None) -> int:
    """The same for two checkpoints of one model, cut in two ways."""
    files = MegatronFiles(first)
    model = (
        architecture_of(files) if template is None else Architecture.of(read_config(template), str(template))
    )
    ours, theirs = open_back(files, model), open_back(second, model)
    return _compare(_made(*ours), _made(*theirs), first, second)


def verify_wan(folder: str | Path, megatron: str | Path) -> int:
    """The same for Wan's transformer, in diffusers' folder and in a checkpoint."""
    store, _ = wan.open_wan(folder)

    def descriptor(entry: Entry) -> int:
        return store.descriptor(entry.file)

    return _compare(_stored(store.entries, descriptor), _wan_made(megatron), folder, megatron)


def verify_wan_resplit(first: str | Path, second: str | Path) -> int:
    """The same for two checkpoints of Wan's transformer."""
    return _compare(_wan_made(first), _wan_made(second), first, second)


def verify_lora(adapter: str | Path, megatron: str | Path, base: str | Path, layout: Layout) -> int:
    """The same for a PEFT adapter and MindSpeed-MM's."""
    source = lora.open_peft(adapter)
    files = MegatronFiles(megatron)
    model = Architecture.of(read_config(base), str(base))
    back, _ = lora.back(files, layout, model)

    def descriptor(entry: Entry) -> int:
        return source.store.descriptor(entry.file)

    return _compare(_stored(source.entries, descriptor), _made(files, back), adapter, megatron)


def _stored(entries: Mapping[Any, Entry], descriptor: Callable[[Entry], int]) -> Tensors:
    found = {}
    for key, entry in entries.items():
        mosaic = whole(key, entry.shape)
        found[_name(key)] = planned(_name(key), mosaic, entries, descriptor)
    return found


def _made(files: MegatronFiles, back: Mapping[Any, Mosaic]) -> Tensors:
    return {
        _name(key): planned(_name(key), mosaic, files.entries, files.descriptor)
        for key, mosaic in back.items()
    }


def _wan_made(folder: str | Path) -> Tensors:
    files = MegatronFiles(folder)
    places = wan.names_back(files.entries, wan.stages_of(files))
    return _made(files, {name: whole(place, files.entries[place].shape) for name, place in places.items()})


def _name(key: str | tuple[str, str]) -> str:
    return key if isinstance(key, str) else f"lora_{key[1]} of {key[0]}"


def _compare(ours: Tensors, theirs: Tensors, first: str | Path, second: str | Path) -> int:
    import torch

    for has, lacks, folder in ((ours, theirs, second), (theirs, ours, first)):
        missing = [name for name in has if name not in lacks]
        if missing:
            raise SightlineError(f"{folder} lacks {missing[0]}")
    with Progress("verifying", sum(tensor.bytes for tensor in ours.values()), "bytes") as progress:
        for name, one in ours.items():
            other = theirs[name]
            fault = f"{second} does not give {name} of {first} back"
            if (one.dtype, one.shape) != (other.dtype, other.shape):
                raise SightlineError(
                    f"{fault}: it is {other.dtype} {list(other.shape)}, not {one.dtype} {list(one.shape)}"
                )
            for begin, end in row_chunks(one.entry):
                rows, back = (
                    tensor.rows(begin, end).contiguous().view(torch.uint8) for tensor in (one, other)
                )
                if not torch.equal(rows, back):
                    raise SightlineError(f"{fault}: rows {begin} to {end} differ")
            progress.advance(one.bytes)
    return len(ours)
