"""Weight files as Hugging Face has them: shards of a bounded size, and an index where there are several."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.checkpoints.store import INDEX, SINGLE
from sightline.checkpoints.writing import Planned
from sightline.errors import UsageError
from sightline.files import write_json

if TYPE_CHECKING:
    import torch


def parse_size(size: str | int) -> int:
    """`5GB`, `500MB`, `2GiB` or a number of bytes -> bytes.

    Raises:
        UsageError: not a size, or not above zero.
    """
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    if match is None or match[2].upper() not in units or float(match[1]) <= 0:
        raise UsageError(f"{size!r} is not a size; write it like 5GB, 500MB or 2GiB")
    return max(1, int(float(match[1]) * units[match[2].upper()]))


def plan_shards(tensors: Iterable[Planned], limit: int, stem: str = "model") -> dict[str, list[Planned]]:
    """Files of at most `limit` bytes (a larger tensor has one alone), by the names that they will have.

    Args:
        stem: how the names begin: model, or diffusers' diffusion_pytorch_model.
    """
    shards: list[list[Planned]] = [[]]
    held = 0
    for tensor in tensors:
        if shards[-1] and held + tensor.bytes > limit:
            shards.append([])
            held = 0
        shards[-1].append(tensor)
        held += tensor.bytes
    if len(shards) == 1:
        return {f"{stem}.safetensors": shards[0]}
    return {shard_name(index, len(shards), stem): shard for index, shard in enumerate(shards)}


def shard_name(index: int, count: int, stem: str = "model") -> str:
    """Hugging Face's name of the `index`-th of `count` shards."""
    return f"{stem}-{index + 1:05d}-of-{count:05d}.safetensors"


def write_index(folder: Path, shards: Mapping[str, Sequence[Planned]], stem: str = "model") -> None:
    """The index of several shards; a single file has none."""
    if len(shards) == 1:
        return
    total = sum(tensor.bytes for part in shards.values() for tensor in part)
    places = {tensor.name: name for name, part in shards.items() for tensor in part}
    write_json(
        folder / f"{stem}.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": places},
    )


def write_shards(folder: Path, tensors: Iterator[tuple[str, torch.Tensor]], limit: int) -> int:
    """Fill shards of at most `limit` bytes (a larger tensor has one alone); return the bytes of tensors."""
    from safetensors.torch import save_file

    files: list[Path] = []
    placed: dict[str, int] = {}
    shard: dict[str, torch.Tensor] = {}
    held = total = 0

    def flush() -> None:
        files.append(folder / f"part-{len(files)}")
        save_file(shard, files[-1], metadata={"format": "pt"})
        shard.clear()

    for name, tensor in tensors:
        if shard and held + tensor.nbytes > limit:
            flush()
            held = 0
        shard[name], placed[name] = tensor, len(files)
        held += tensor.nbytes
        total += tensor.nbytes
    flush()
    _name_shards(folder, files, placed, total)
    return total


def _name_shards(folder: Path, files: list[Path], placed: dict[str, int], total: int) -> None:
    """Give the shards Hugging Face's names, now that their number is known, and write the index."""
    if len(files) == 1:
        files[0].rename(folder / SINGLE)
        return
    names = [shard_name(index, len(files)) for index in range(len(files))]
    for file, name in zip(files, names, strict=True):
        file.rename(folder / name)
    index = {"metadata": {"total_size": total}, "weight_map": {t: names[i] for t, i in placed.items()}}
    write_json(folder / INDEX, index)
