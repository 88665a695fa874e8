"""Wan's transformer between diffusers and MindSpeed-MM, and from one pipeline to another."""

from __future__ import annotations

import shutil
from pathlib import Path

from sightline.checkpoints.job import sources
from sightline.checkpoints.megatron import wan
from sightline.checkpoints.megatron.convert import MAX_SHARD, check_complete
from sightline.checkpoints.megatron.files import MegatronFiles
from sightline.checkpoints.megatron.layout import Place
from sightline.checkpoints.megatron.output import ConversionReport, Run, write_hugging_face, write_megatron
from sightline.checkpoints.megatron.stages import Stages
from sightline.checkpoints.mosaic import chained, whole
from sightline.checkpoints.store import read_config
from sightline.checkpoints.tiling import planned
from sightline.errors import SightlineError

_ONCE = Run()


def wan_hf_to_mm(
    folder: str | Path, output: str | Path, stages: Stages, run: Run = _ONCE
) -> ConversionReport:
    """Lay a transformer of diffusers out as MindSpeed-MM trains it.

    Raises:
        UsageError: the stages do not hold its blocks. SightlineError: it is not Wan's, or not whole.
    """
    store, layers = wan.open_wan(folder)
    shapes = {name: entry.shape for name, entry in store.entries.items()}
    mosaics = wan.mosaics(shapes, layers, stages)
    check_complete(mosaics, shapes)
    return write_megatron(
        output,
        mosaics,
        store.entries,
        lambda entry: store.descriptor(entry.file),
        layout=f"pp {stages}",
        ranks=(1, stages.ranks, stages.chunks),
        plan={"job": "wan-hf-to-mm", "sources": sources(entry.file for entry in store.entries.values())},
        run=run,
    )


def wan_mm_to_hf(
    folder: str | Path,
    template: str | Path,
    output: str | Path,
    *,
    max_shard_bytes: int = MAX_SHARD,
    run: Run = _ONCE,
) -> ConversionReport:
    """Put a checkpoint of MindSpeed-MM together as diffusers' transformer folder.

    Args:
        template: the transformer's folder (or the pipeline's), for its config.json.

    Raises:
        SightlineError: the files are not Wan's, or of another number of blocks.
    """
    template = wan.transformer_folder(template)
    layers = int(read_config(template).get("num_layers", 0))
    files, stages, back = _opened(folder)
    if stages.total != layers:
        raise SightlineError(
            f"{files.folder} has {stages.total} blocks, but {template}/config.json says num_layers {layers}"
        )

    def beside(target: Path) -> None:
        shutil.copyfile(template / "config.json", target / "config.json")

    return write_hugging_face(
        output,
        [
            planned(name, whole(place, files.entries[place].shape), files.entries, files.descriptor)
            for name, place in back.items()
        ],
        layout=f"pp {stages}",
        limit=max_shard_bytes,
        stem=wan.STEM,
        plan={"job": "wan-mm-to-hf", "sources": sources(files.files.values())},
        run=run,
        beside=beside,
    )


def wan_resplit(folder: str | Path, output: str | Path, stages: Stages, run: Run = _ONCE) -> ConversionReport:
    """Lay a checkpoint of MindSpeed-MM out on other stages; raises as the others."""
    files, found, back = _opened(folder)
    shapes = {name: files.entries[place].shape for name, place in back.items()}
    mosaics = wan.mosaics(shapes, found.total, stages)
    check_complete(mosaics, shapes)
    through = chained(mosaics, {name: whole(place, shapes[name]) for name, place in back.items()})
    return write_megatron(
        output,
        through,
        files.entries,
        files.descriptor,
        layout=f"pp {stages}",
        ranks=(1, stages.ranks, stages.chunks),
        plan={"job": "wan-resplit", "sources": sources(files.files.values())},
        run=run,
    )


def _opened(folder: str | Path) -> tuple[MegatronFiles, Stages, dict[str, Place]]:
    files = MegatronFiles(folder)
    stages = wan.stages_of(files)
    return files, stages, wan.names_back(files.entries, stages)
