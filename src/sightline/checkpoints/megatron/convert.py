"""Hugging Face <-> MindSpeed-MM, and from one cut to another: three ways through the same mosaics."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sightline.checkpoints import companions
from sightline.checkpoints.entry import Entry
from sightline.checkpoints.job import Job, sources
from sightline.checkpoints.megatron.architecture import Architecture
from sightline.checkpoints.megatron.detect import architecture_of, layout_of
from sightline.checkpoints.megatron.files import EXTRA, LATEST, MegatronFiles, file_name, keys_of
from sightline.checkpoints.megatron.layout import Layout, Place, Rank
from sightline.checkpoints.megatron.source import check_names, open_source
from sightline.checkpoints.mosaic import Mosaic, chained, check_whole, inverted
from sightline.checkpoints.names import OLD, spelled
from sightline.checkpoints.shards import plan_shards, write_index
from sightline.checkpoints.store import read_config
from sightline.checkpoints.tiling import Descriptor, planned
from sightline.checkpoints.writing import Planned, write_safetensors, write_torch_file
from sightline.errors import SightlineError
from sightline.files import write_json
from sightline.progress import Progress, note

MANIFEST = "sightline-manifest.json"


@dataclass(frozen=True)
class ConversionReport:
    """What was written: `tensors` of the output in so many files, with their bytes."""

    output: Path
    layout: str
    files: int
    tensors: int
    bytes: int


def hf_to_mm(
    folder: str | Path, output: str | Path, layout: Layout, *, resume: bool = False, dry_run: bool = False
) -> ConversionReport:
    """Cut a Hugging Face model as MindSpeed-MM trains it.

    Raises:
        UsageError: the layout does not fit the model. SightlineError: the model is not whole, or the output cannot be
            written; nothing is there then.
    """
    source = open_source(folder)
    layout.check(source.model)
    shapes = {name: entry.shape for name, entry in source.entries.items()}
    mosaics = layout.tensors(source.model, shapes)
    _check_complete(mosaics, shapes)
    _warn_empty(layout)
    plan = {
        "job": "hf-to-mm",
        "layout": _described(layout),
        "sources": sources(entry.file for entry in source.entries.values()),
    }
    return _write_megatron(
        output, layout, source.model, mosaics, source.entries, source.descriptor, plan, resume, dry_run
    )


def mm_to_hf(
    folder: str | Path,
    template: str | Path,
    output: str | Path,
    *,
    names: str = OLD,
    max_shard_bytes: int = 5 * 10**9,
    expected: Layout | None = None,
    resume: bool = False,
    dry_run: bool = False,
) -> ConversionReport:
    """Put a checkpoint of MindSpeed-MM together as a Hugging Face model.

    Args:
        template: a folder with the model's config.json, tokenizer and processor; its weights are not read.
        names: old (`model.layers`, `visual`) or new (`model.language_model.layers`, `model.visual`) tensor names.
        expected: what the caller believes the layout to be; None takes what the files show.

    Raises:
        SightlineError: the files are not those of this model, or not of this layout; nothing is written then.
    """
    template = Path(template)
    config = read_config(template)
    model = Architecture.of(config, str(template))
    files, layout, back = _opened(folder, model)
    if expected is not None and _described(expected) != _described(replace(layout, copies_head=True)):
        raise SightlineError(
            f"{files.folder} is laid out as {_described(layout)}, not as {_described(expected)}"
        )
    written = {spelled(name, names): mosaic for name, mosaic in back.items()}
    tensors = [planned(name, mosaic, files.entries, files.descriptor) for name, mosaic in written.items()]
    shards = plan_shards(tensors, max_shard_bytes)
    total = sum(tensor.bytes for tensor in tensors)
    report = ConversionReport(Path(output), _described(layout), len(shards), len(tensors), total)
    if dry_run:
        return report
    plan = {
        "job": "mm-to-hf",
        "names": names,
        "shards": max_shard_bytes,
        "sources": sources(files.files.values()),
    }
    with (
        Job(output, plan, bytes=total, resume=resume) as job,
        Progress("converting", total, "bytes") as progress,
    ):
        for name, part in shards.items():
            if not job.file(name, lambda file, part=part: write_safetensors(file, part, progress.advance)):  # type: ignore[misc]
                progress.advance(sum(tensor.bytes for tensor in part))
        write_index(job.folder, shards)
        _copy_beside(template, job.folder)
        write_json(job.folder / "config.json", config)
    return report


def resplit(
    folder: str | Path,
    output: str | Path,
    layout: Layout,
    *,
    template: str | Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
) -> ConversionReport:
    """Cut a checkpoint of MindSpeed-MM anew, without the Hugging Face model in between.

    Args:
        template: the model's folder, for its config.json; without it the tensors must show the sizes.

    Raises: as `hf_to_mm` and `mm_to_hf`.
    """
    model = None if template is None else Architecture.of(read_config(template), str(template))
    files, found, back = _opened(folder, model)
    model = model or architecture_of(files)
    layout = replace(layout, canonical=found.canonical)
    layout.check(model)
    shapes = {name: mosaic.shape for name, mosaic in back.items()}
    mosaics = layout.tensors(model, shapes)
    _check_complete(mosaics, shapes)
    _warn_empty(layout)
    plan = {
        "job": "resplit",
        "layout": _described(layout),
        "sources": sources(files.files.values()),
    }
    through = chained(mosaics, back)
    return _write_megatron(
        output, layout, model, through, files.entries, files.descriptor, plan, resume, dry_run
    )


def open_back(folder: str | Path, model: Architecture) -> tuple[MegatronFiles, dict[str, Mosaic]]:
    """A checkpoint, and each Hugging Face tensor by canonical name as a mosaic of its tensors."""
    files, _, back = _opened(folder, model)
    return files, back


def _opened(
    folder: str | Path, model: Architecture | None
) -> tuple[MegatronFiles, Layout, dict[str, Mosaic]]:
    files = MegatronFiles(folder)
    model = model or architecture_of(files)
    layout = layout_of(files, model)
    layout.check(model)
    shapes = model.tensors()
    mosaics = layout.tensors(model, shapes)
    check_names(
        str(files.folder),
        {place: mosaic.shape for place, mosaic in mosaics.items()},
        {place: entry.shape for place, entry in files.entries.items()},
    )
    _check_copies(files, mosaics)
    return files, layout, inverted(mosaics, shapes)


def _check_copies(files: MegatronFiles, mosaics: Mapping[Place, Mosaic]) -> None:
    """What stands on several ranks must be the same there; only one of them can go on."""
    from sightline.checkpoints.megatron.detect import same_bytes

    first: dict[tuple[Any, ...], Place] = {}
    for place, mosaic in mosaics.items():
        other = first.setdefault(mosaic.tiles, place)
        if other is not place and not same_bytes(files, place, other):
            raise SightlineError(
                f"{files.folder}: {place} and {other} should be copies of one tensor, but they differ; was the "
                "checkpoint put together from different iterations?"
            )


def _check_complete(mosaics: Mapping[Place, Mosaic], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Every number of the output has one origin, and every number of the source a place."""
    for place, mosaic in mosaics.items():
        check_whole(str(place), mosaic)
    inverted(mosaics, shapes)


def _warn_empty(layout: Layout) -> None:
    empty = layout.pipeline.empty_stages()
    if empty:
        note(
            f"stage {', '.join(map(str, empty))} has no layer of the language model; MindSpeed-MM stops there "
            "with `learning_rate is None`"
        )


def _write_megatron(
    output: str | Path,
    layout: Layout,
    model: Architecture,
    mosaics: Mapping[Place, Mosaic],
    entries: Mapping[Any, Entry],
    descriptor: Descriptor,
    plan: dict[str, Any],
    resume: bool,
    dry_run: bool,
) -> ConversionReport:
    ranks: dict[Rank, dict[tuple[str, ...], Planned]] = {}
    for place, mosaic in mosaics.items():
        tensor = planned(str(place), mosaic, entries, descriptor)
        ranks.setdefault(place.rank, {})[keys_of(place, layout.chunks)] = tensor
    total = sum(tensor.bytes for tensors in ranks.values() for tensor in tensors.values())
    report = ConversionReport(Path(output), _described(layout), len(ranks), len(mosaics), total)
    if dry_run:
        return report
    empty: dict[str, Any] = (
        {f"model{chunk}": {} for chunk in range(layout.chunks)} if layout.chunks > 1 else {}
    )
    manifest: dict[str, Any] = {"layout": _described(layout), "files": {}}
    with (
        Job(output, plan, bytes=total, resume=resume) as job,
        Progress("converting", total, "bytes") as progress,
    ):
        for rank, tensors in sorted(ranks.items(), key=lambda item: (item[0].pipeline, item[0].tensor)):
            name = f"release/{file_name(rank, layout.pipeline.text.ranks)}"
            missing = {
                key: value for key, value in empty.items() if not any(keys[0] == key for keys in tensors)
            }

            def write(file: Path, tensors: Any = tensors, missing: Any = missing) -> None:
                write_torch_file(file, tensors, {**missing, **EXTRA}, progress.advance)

            if not job.file(name, write):
                progress.advance(sum(tensor.bytes for tensor in tensors.values()))
            manifest["files"][name] = _manifest(tensors)
        (job.folder / LATEST).write_text("release", encoding="utf-8")
        write_json(job.folder / MANIFEST, manifest)
    return report


def _manifest(tensors: Mapping[tuple[str, ...], Planned]) -> dict[str, Any]:
    return {
        "/".join(keys): {"dtype": tensor.dtype, "shape": list(tensor.shape), "sha256": tensor.sha256()}
        for keys, tensor in tensors.items()
    }


def _described(layout: Layout) -> str:
    parts = [f"tp {layout.tensor}"]
    if layout.vision_tensor != layout.tensor:
        parts.append(f"vit-tp {layout.vision_tensor}")
    parts += [f"pp-llm {layout.pipeline.text}", f"pp-vit {layout.pipeline.vision}"]
    return ", ".join([*parts, *(["canonical"] if layout.canonical else [])])


def _copy_beside(template: Path, folder: Path) -> None:
    for name in (*companions.TOKENIZER, *companions.TEMPLATE, *companions.PROCESSOR, *companions.GENERATION):
        if (template / name).is_file():
            shutil.copyfile(template / name, folder / name)
