"""A base and a LoRA adapter become one checkpoint, tensor by tensor; the model itself is never built.

Every tensor of the adapter must find its place before anything is written. Memory is bounded by one shard.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.checkpoints import companions
from sightline.checkpoints.adapter import Adapter, open_adapter, pairs
from sightline.checkpoints.store import INDEX, SINGLE, Store, read_config
from sightline.errors import SightlineError, UsageError
from sightline.files import replacing_folder, write_json
from sightline.progress import track

if TYPE_CHECKING:
    import torch

# Files that belong together come from one folder: the adapter's if it has the first kind, else the base's.
_COMPANIONS: tuple[tuple[str, ...], ...] = (
    companions.TOKENIZER,
    companions.TEMPLATE,
    ("preprocessor_config.json",),
    ("video_preprocessor_config.json",),
    ("processor_config.json",),
    companions.GENERATION,
)
_TOKENIZER_PROPER = {"tokenizer.json", "vocab.json", "tokenizer.model"}


@dataclass(frozen=True)
class MergeReport:
    """What was written; `bytes` are those of the tensors. The last two come from `verify`, if it was asked for."""

    output: Path
    adapted: int
    replaced: int
    copied: int
    bytes: int
    seconds: float
    untied: bool = False
    largest_difference: float | None = None
    adapter_moved: float | None = None


def merge(
    base: str | Path,
    adapter: str | Path,
    output: str | Path,
    *,
    verify: bool = False,
    max_shard_size: str | int = "5GB",
) -> MergeReport:
    """Write the model `base` with the LoRA or rsLoRA adapter summed into it to the new folder `output`.

    Sums are made in float32 and written in the base's dtype. Tokenizer, processor, template and generation
    settings come from the adapter's folder where it has them (they record what it was trained with).

    Raises:
        SightlineError: base or adapter is unusable, an adapter tensor has no place or another shape, the
            method is not LoRA, or `output` is taken; nothing is written then. With `verify`, also that the
            written model is no nearer to base + adapter than the base is.
    """
    start = time.perf_counter()
    limit = parse_size(max_shard_size)
    config = read_config(base)
    store = Store(base)
    changes = open_adapter(adapter, store)
    names, untied = _names(config, store, changes)
    with replacing_folder(output) as folder:
        written = _write(folder, _merged(store, changes, names), len(names), limit)
        _copy_companions(folder, Path(adapter), Path(base))
        write_json(folder / "config.json", _untied(config) if untied else config)
    seconds = time.perf_counter() - start
    proof = None
    if verify:
        from sightline.checkpoints import verify as proofs

        proof = proofs.verify(base, adapter, output)
        if proof.lost:
            raise SightlineError(
                f"{output} answers no more like base + adapter than the base does (logits differ by "
                f"{proof.difference:.3g}, the base's by {proof.moved:.3g}): in the base's dtype the adapter's "
                "change is lost; merge into a float32 copy of the base, or use the adapter unmerged"
            )
    replaced = sum(change.whole is not None and change.a is None for change in changes.changes.values())
    return MergeReport(
        output=Path(output),
        adapted=len(list(pairs(changes))),
        replaced=replaced,
        copied=len(names) - len(changes.changes),
        bytes=written,
        seconds=seconds,
        untied=untied,
        largest_difference=proof.difference if proof else None,
        adapter_moved=proof.moved if proof else None,
    )


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


def _names(config: dict[str, Any], store: Store, adapter: Adapter) -> tuple[list[str], bool]:
    """The tensors to write, and whether a tied embedding and head part because only one was trained.

    An adapter on a tied embedding changes the embedding and not the head (PEFT leaves the head the base's),
    so the two can share one tensor no longer.
    """
    names = list(store)
    tied = "lm_head.weight" not in store or bool(config.get("tie_word_embeddings"))
    embedding = _embedding(store)
    if not tied or embedding is None:
        return names, False
    touched = [name for name in (embedding, "lm_head.weight") if name in adapter.changes]
    if not touched:
        return names, False
    import torch

    source = store.get(embedding)
    if torch.equal(adapter.changed(source, embedding), adapter.changed(source, "lm_head.weight")):
        return names, False
    return (names if "lm_head.weight" in store else [*names, "lm_head.weight"]), True


def _embedding(store: Store) -> str | None:
    return next((name for name in store if name.endswith("embed_tokens.weight")), None)


def _untied(config: dict[str, Any]) -> dict[str, Any]:
    config = {**config, "tie_word_embeddings": False}
    if isinstance(config.get("text_config"), dict):
        config["text_config"] = {**config["text_config"], "tie_word_embeddings": False}
    return config


def _merged(store: Store, adapter: Adapter, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    for name in track(names, "merging", total=len(names)):
        source = name if name in store else _embedding(store)
        assert source is not None  # only a tied head is absent, and that needs an embedding
        yield name, adapter.changed(store.get(source), name).contiguous()


def _write(folder: Path, tensors: Iterator[tuple[str, torch.Tensor]], count: int, limit: int) -> int:
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
    names = [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    for file, name in zip(files, names, strict=True):
        file.rename(folder / name)
    index = {"metadata": {"total_size": total}, "weight_map": {t: names[i] for t, i in placed.items()}}
    write_json(folder / INDEX, index)


def _copy_companions(folder: Path, adapter: Path, base: Path) -> None:
    for group in _COMPANIONS:
        present = {name for name in group if (adapter / name).is_file()}
        # A tokenizer_config.json alone is a remark, not a tokenizer.
        ours = bool(present & _TOKENIZER_PROPER) if group is companions.TOKENIZER else bool(present)
        for name in group:
            source = (adapter if ours else base) / name
            if source.is_file():
                shutil.copyfile(source, folder / name)


def describe(report: MergeReport) -> dict[str, Any]:
    """The report as plain values, for JSON."""
    return json.loads(json.dumps(report.__dict__, default=str))
