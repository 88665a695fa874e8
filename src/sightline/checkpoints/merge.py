"""A base and a LoRA adapter become one checkpoint, tensor by tensor; the model itself is never built.

Every tensor of the adapter must find its place before anything is written. Memory is bounded by one shard.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.checkpoints import companions
from sightline.checkpoints.adapter import Adapter, open_adapter, pairs
from sightline.checkpoints.shards import parse_size, write_shards
from sightline.checkpoints.store import Store, read_config
from sightline.errors import SightlineError
from sightline.files import replacing_folder, write_json
from sightline.progress import track

if TYPE_CHECKING:
    import torch

# Files that belong together come from one folder: the adapter's if it has the first kind, else the base's.
_COMPANIONS: tuple[tuple[str, ...], ...] = (
    companions.TOKENIZER,
    companions.TEMPLATE,
    *((name,) for name in companions.PROCESSOR),
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
    if config.get("quantization_config") is not None:
        raise SightlineError(
            f"{base} is quantized, and an adapter cannot be added to that; merge into the model that it was made "
            "from, then quantize the result"
        )
    store = Store(base)
    changes = open_adapter(adapter, store)
    names, untied = _names(config, store, changes)
    with replacing_folder(output) as folder:
        written = write_shards(folder, _merged(store, changes, names), limit)
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
