"""Hugging Face <-> MindSpeed-MM, and from one cut to another: three ways through the same mosaics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sightline.checkpoints import companions
from sightline.checkpoints.job import sources
from sightline.checkpoints.megatron.architecture import Architecture
from sightline.checkpoints.megatron.detect import architecture_of, layout_of
from sightline.checkpoints.megatron.files import MegatronFiles
from sightline.checkpoints.megatron.layout import Expected, Layout, Place
from sightline.checkpoints.megatron.output import ConversionReport, Run, write_hugging_face, write_megatron
from sightline.checkpoints.megatron.source import check_names, open_source
from sightline.checkpoints.mosaic import Mosaic, chained, check_whole, inverted
from sightline.checkpoints.names import OLD, spelled
from sightline.checkpoints.store import read_config
from sightline.checkpoints.tiling import planned
from sightline.checkpoints.writing import same_bytes
from sightline.errors import SightlineError
from sightline.files import write_json
from sightline.progress import note

MAX_SHARD = 5 * 10**9  # bytes
_ONCE = Run()
_ANY = Expected()


def hf_to_mm(folder: str | Path, output: str | Path, layout: Layout, run: Run = _ONCE) -> ConversionReport:
    """Cut a Hugging Face model as MindSpeed-MM trains it.

    Raises:
        UsageError: the layout does not fit the model. SightlineError: the model is not whole, or the output cannot be
            written; nothing is there then.
    """
    source = open_source(folder)
    layout.check(source.model)
    shapes = {name: entry.shape for name, entry in source.entries.items()}
    mosaics = layout.tensors(source.model, shapes)
    check_complete(mosaics, shapes)
    _warn_empty(layout)
    return write_megatron(
        output,
        mosaics,
        source.entries,
        source.descriptor,
        layout=layout.words(),
        ranks=layout.files,
        plan={
            "job": "hf-to-mm",
            "model": asdict(source.model),
            "sources": sources(entry.file for entry in source.entries.values()),
        },
        run=run,
    )


def mm_to_hf(
    folder: str | Path,
    template: str | Path,
    output: str | Path,
    *,
    names: str = OLD,
    max_shard_bytes: int = MAX_SHARD,
    expected: Expected = _ANY,
    run: Run = _ONCE,
) -> ConversionReport:
    """Put a checkpoint of MindSpeed-MM together as a Hugging Face model.

    Args:
        template: a folder with the model's config.json, tokenizer and processor; its weights are not read.
        names: old (`model.layers`, `visual`) or new (`model.language_model.layers`, `model.visual`) tensor names.
        expected: what the caller believes the layout to be; it is taken as the files show it.

    Raises:
        SightlineError: the files are not those of this model, or not of this layout; nothing is written then.
    """
    template = Path(template)
    config = read_config(template)
    model = Architecture.of(config, str(template))
    files, layout, back = _opened(folder, model)
    expected.check(layout, str(files.folder))

    def beside(target: Path) -> None:
        companions.copy(template, target)
        write_json(target / "config.json", config)

    return write_hugging_face(
        output,
        [
            planned(spelled(name, names), mosaic, files.entries, files.descriptor)
            for name, mosaic in back.items()
        ],
        layout=layout.words(),
        limit=max_shard_bytes,
        stem="model",
        plan={
            "job": "mm-to-hf",
            "names": names,
            "configuration": config,
            "sources": sources(files.files.values()),
        },
        run=run,
        beside=beside,
    )


def resplit(
    folder: str | Path,
    output: str | Path,
    layout: Layout,
    *,
    template: str | Path | None = None,
    expected: Expected = _ANY,
    run: Run = _ONCE,
) -> ConversionReport:
    """Cut a checkpoint of MindSpeed-MM anew, without a Hugging Face model in between; its mode stays as it is.

    Args:
        template: the model's folder, for its config.json; without it the tensors must show the sizes.
        expected: what the caller believes the present layout to be.

    Raises: as `hf_to_mm` and `mm_to_hf`.
    """
    files = MegatronFiles(folder)
    model = (
        architecture_of(files) if template is None else Architecture.of(read_config(template), str(template))
    )
    _, found, back = _opened(files, model)
    expected.check(found, str(files.folder))
    layout = replace(layout, canonical=found.canonical)
    layout.check(model)
    shapes = {name: mosaic.shape for name, mosaic in back.items()}
    mosaics = layout.tensors(model, shapes)
    check_complete(mosaics, shapes)
    _warn_empty(layout)
    return write_megatron(
        output,
        chained(mosaics, back),
        files.entries,
        files.descriptor,
        layout=layout.words(),
        ranks=layout.files,
        plan={"job": "resplit", "model": asdict(model), "sources": sources(files.files.values())},
        run=run,
    )


def open_back(
    folder: str | Path | MegatronFiles, model: Architecture
) -> tuple[MegatronFiles, dict[str, Mosaic]]:
    """A checkpoint, and each Hugging Face tensor by canonical name as a mosaic of its tensors."""
    files, _, back = _opened(folder, model)
    return files, back


def check_complete(mosaics: Mapping[Place, Mosaic], shapes: Mapping[Any, tuple[int, ...]]) -> None:
    """Every number of the output has one origin, and every number of the source a place.

    Raises:
        SightlineError: the text names the tensor.
    """
    for place, mosaic in mosaics.items():
        check_whole(str(place), mosaic)
    inverted(mosaics, shapes)


def check_copies(files: MegatronFiles, mosaics: Mapping[Place, Mosaic]) -> None:
    """What stands on several ranks must be the same there; only one of them can go on.

    Raises:
        SightlineError: the text names two that differ.
    """
    first: dict[tuple[Any, ...], Place] = {}
    for place, mosaic in mosaics.items():
        other = first.setdefault(mosaic.tiles, place)
        if other is not place and not same_bytes(
            files.entries[place], files.entries[other], files.descriptor
        ):
            raise SightlineError(
                f"{files.folder}: {place} and {other} should be copies of one tensor, but they differ; was the "
                "checkpoint put together from different iterations?"
            )


def _opened(
    folder: str | Path | MegatronFiles, model: Architecture
) -> tuple[MegatronFiles, Layout, dict[str, Mosaic]]:
    files = folder if isinstance(folder, MegatronFiles) else MegatronFiles(folder)
    layout = layout_of(files, model)
    layout.check(model)
    shapes = model.tensors()
    mosaics = layout.tensors(model, shapes)
    check_names(
        str(files.folder),
        {place: mosaic.shape for place, mosaic in mosaics.items()},
        {place: entry.shape for place, entry in files.entries.items()},
    )
    check_copies(files, mosaics)
    return files, layout, inverted(mosaics, shapes)


def _warn_empty(layout: Layout) -> None:
    empty = layout.pipeline.empty_stages()
    if empty:
        note(
            f"stage {', '.join(map(str, empty))} has no layer of the language model; MindSpeed-MM stops there "
            "with `learning_rate is None`"
        )
