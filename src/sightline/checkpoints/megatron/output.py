"""What a conversion writes: the files of MindSpeed-MM's ranks, or a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.checkpoints.entry import Entry
from sightline.checkpoints.job import Job
from sightline.checkpoints.megatron.files import EXTRA, LATEST, file_name, keys_of
from sightline.checkpoints.megatron.layout import Place, Rank
from sightline.checkpoints.mosaic import Mosaic
from sightline.checkpoints.shards import plan_shards, write_index
from sightline.checkpoints.tiling import Descriptor, planned
from sightline.checkpoints.torch_file import prepare
from sightline.checkpoints.writing import Planned, write_safetensors, write_torch_file
from sightline.files import check_free, write_json
from sightline.progress import Progress

MANIFEST = "sightline-manifest.json"


@dataclass(frozen=True)
class Run:
    """How a conversion runs: `resume` goes on with an interrupted one, `dry_run` checks and writes nothing."""

    resume: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class ConversionReport:
    """What was written: `tensors` in so many files, with their bytes; `layout` is MindSpeed-MM's side of it."""

    output: Path
    layout: str
    files: int
    tensors: int
    bytes: int


def write_megatron(
    output: str | Path,
    mosaics: Mapping[Place, Mosaic],
    entries: Mapping[Any, Entry],
    descriptor: Descriptor,
    *,
    layout: str,
    ranks: tuple[int, int, int],
    plan: dict[str, Any],
    run: Run,
) -> ConversionReport:
    """Write the files of every rank, and a manifest with shapes and hashes.

    Args:
        entries, descriptor: where the mosaics' sources are stored.
        layout: in words.
        ranks: tensor-parallel ranks, pipeline ranks, and model chunks of each.
        plan: what the output depends on.
    """
    tensor_ranks, pipeline_ranks, chunks = ranks
    # A rank without a tensor has a file too.
    files: dict[Rank, dict[tuple[str, ...], Planned]] = {
        Rank(tensor, pipeline): {} for pipeline in range(pipeline_ranks) for tensor in range(tensor_ranks)
    }
    for place, mosaic in mosaics.items():
        tensor = planned(str(place), mosaic, entries, descriptor)
        files[place.rank][keys_of(place, chunks)] = tensor
    total = sum(tensor.bytes for tensors in files.values() for tensor in tensors.values())
    report = ConversionReport(Path(output), layout, len(files), len(mosaics), total)
    if run.dry_run:
        check_free(Path(output))
        return report
    prepare()
    manifest: dict[str, Any] = {"layout": layout, "files": {}}
    with (
        Job(output, {**plan, "layout": layout}, bytes=total, resume=run.resume) as job,
        Progress("converting", total, "bytes") as progress,
    ):
        for rank, tensors in files.items():
            name = f"release/{file_name(rank, pipeline_ranks)}"
            extra = {**_empty_chunks(tensors, chunks), **EXTRA}
            if not job.file(name, _torch_writer(tensors, extra, progress.advance)):
                progress.advance(sum(tensor.bytes for tensor in tensors.values()))
            manifest["files"][name] = listed({"/".join(keys): tensor for keys, tensor in tensors.items()})
        (job.folder / LATEST).write_text("release", encoding="utf-8")
        write_json(job.folder / MANIFEST, manifest)
    return report


def write_hugging_face(
    output: str | Path,
    tensors: Sequence[Planned],
    *,
    layout: str,
    limit: int,
    stem: str,
    plan: dict[str, Any],
    run: Run,
    beside: Callable[[Path], None],
) -> ConversionReport:
    """Write a folder of safetensors.

    Args:
        limit: bytes of a file; stem: how the files' names begin.
        beside: writes what stands beside the weights into the folder that it is given.
    """
    shards = plan_shards(tensors, limit, stem)
    total = sum(tensor.bytes for tensor in tensors)
    report = ConversionReport(Path(output), layout, len(shards), len(tensors), total)
    if run.dry_run:
        check_free(Path(output))
        return report
    manifest: dict[str, Any] = {"layout": layout, "files": {}}
    with (
        Job(output, {**plan, "shards": limit}, bytes=total, resume=run.resume) as job,
        Progress("converting", total, "bytes") as progress,
    ):
        for name, part in shards.items():
            if not job.file(name, _safetensors_writer(part, progress.advance)):
                progress.advance(sum(tensor.bytes for tensor in part))
            manifest["files"][name] = listed({tensor.name: tensor for tensor in part})
        write_json(job.folder / MANIFEST, manifest)
        write_index(job.folder, shards, stem)
        beside(job.folder)
    return report


def _torch_writer(
    tensors: Mapping[tuple[str, ...], Planned], extra: Mapping[str, Any], advance: Callable[[int], None]
) -> Callable[[Path], None]:
    return lambda file: write_torch_file(file, tensors, extra, advance)


def _safetensors_writer(part: Sequence[Planned], advance: Callable[[int], None]) -> Callable[[Path], None]:
    return lambda file: write_safetensors(file, part, advance, hashed=True)


def _empty_chunks(tensors: Mapping[tuple[str, ...], Planned], chunks: int) -> dict[str, Any]:
    """Model chunks without a layer stand in a file too."""
    named = {keys[0] for keys in tensors}
    wanted = [f"model{chunk}" for chunk in range(chunks)] if chunks > 1 else ["model"]
    return {name: {} for name in wanted if name not in named}


def listed(tensors: Mapping[str, Planned]) -> dict[str, Any]:
    """What a manifest says of the tensors of a file; the sum is of the bytes of each, as they are stored."""
    return {
        name: {"dtype": tensor.dtype, "shape": list(tensor.shape), "sha256": tensor.sha256()}
        for name, tensor in tensors.items()
    }
