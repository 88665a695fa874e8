"""A base and LoRA adapters become one checkpoint, some rows of a tensor at a time; the model itself is never built.

Every tensor of an adapter must find its place before anything is written.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.checkpoints import companions
from sightline.checkpoints.adapter import check_base, follow_tie, open_adapter
from sightline.checkpoints.job import Job, sources
from sightline.checkpoints.shards import parse_size, plan_shards, write_index
from sightline.checkpoints.store import Store, read_config
from sightline.checkpoints.update import Part, Update
from sightline.checkpoints.writing import Planned, row_chunks, write_safetensors
from sightline.errors import SightlineError, UsageError
from sightline.files import check_free, write_json
from sightline.hardware.accelerator import find
from sightline.hardware.host_memory import keep_freed_memory
from sightline.progress import Progress

if TYPE_CHECKING:
    import torch

    from sightline.checkpoints.verify import Verification

# Files that belong together come from one folder: the adapter's if it has the first kind, else the base's.
_COMPANIONS: tuple[tuple[str, ...], ...] = (
    companions.TOKENIZER,
    companions.TEMPLATE,
    *((name,) for name in companions.PROCESSOR),
    companions.GENERATION,
)
_HEAD = "lm_head.weight"
_TOKENIZER_PROPER = {"tokenizer.json", "vocab.json", "tokenizer.model"}


@dataclass(frozen=True)
class MergeReport:
    """What was written; `bytes` are those of the tensors. The last two come from `verify`, if it was asked for."""

    output: Path
    adapted: int
    replaced: int
    copied: int
    bytes: int
    files: int
    seconds: float
    untied: bool = False
    largest_difference: float | None = None
    adapter_moved: float | None = None


def merge(
    base: str | Path,
    adapter: str | Path | Sequence[str | Path],
    output: str | Path,
    *,
    weights: Sequence[float] | None = None,
    verify: bool = False,
    max_shard_size: str | int = "5GB",
    device: str | None = None,
    resume: bool = False,
    dry_run: bool = False,
) -> MergeReport:
    """Write the model `base` with LoRA, rsLoRA or DoRA adapters summed into it to the new folder `output`.

    Sums are made in float32 and written in the base's dtype, a few rows at a time. Tokenizer, processor, template and
    generation settings come from the (first) adapter's folder where it has them: they record what it was trained with.

    Args:
        adapter: a folder, or several.
        weights: of several adapters, 1 each without it: a change counts so many times, and of a tensor that was
            trained whole its difference from the base's.
        device: where the sums are made; None is the CPU.
        resume: go on with an interrupted merge.
        dry_run: check everything and write nothing.

    Raises:
        SightlineError: base or adapter is unusable, an adapter tensor has no place or another shape, the
            method is not LoRA, or `output` is taken; nothing is written then. With `verify`, also that the
            written model is no nearer to base + adapter than the base is.
    """
    start = time.perf_counter()
    limit = parse_size(max_shard_size)
    keep_freed_memory()  # else every few rows are given back to the system and asked for again
    folders = [Path(one) for one in ([adapter] if isinstance(adapter, (str, Path)) else adapter)]
    merger = _Merger(Path(base), folders, _weights(folders, weights), device)
    shards = plan_shards(merger.tensors(), limit)
    if dry_run:
        check_free(Path(output))
    else:
        _write(merger, shards, output, limit, resume)
    seconds = time.perf_counter() - start
    proof = None
    if verify and not dry_run:
        proof = check(base, folders, output, weights=weights)
    changes = merger.changes
    return MergeReport(
        output=Path(output),
        adapted=sum(any(part.change.a is not None for part in parts) for parts in changes.values()),
        replaced=sum(all(part.change.a is None for part in parts) for parts in changes.values()),
        copied=len(merger.names) - len(changes),
        bytes=sum(tensor.bytes for part in shards.values() for tensor in part),
        files=len(shards),
        seconds=seconds,
        untied=merger.untied,
        largest_difference=proof.difference if proof else None,
        adapter_moved=proof.moved if proof else None,
    )


def check(
    base: str | Path,
    adapters: Sequence[str | Path],
    merged: str | Path,
    *,
    weights: Sequence[float] | None = None,
) -> Verification:
    """Compare the logits of a merged model with those of its base with the adapters on it, by PEFT.

    Raises:
        SightlineError: the merged model is no nearer to base + adapters than the base is.
    """
    from sightline.checkpoints import verify as proofs

    proof = proofs.verify(base, adapters, merged, weights=_weights(list(adapters), weights))
    if proof.lost:
        raise SightlineError(
            f"{merged} answers hardly more like base + adapter than the base does (logits differ by "
            f"{proof.difference:.3g}, the base's by {proof.moved:.3g}): in the base's dtype the adapter's "
            "change is lost, or it is another adapter's; merge into a float32 copy of the base, or use the adapter "
            "unmerged"
        )
    return proof


def _weights(folders: Sequence[Any], weights: Sequence[float] | None) -> list[float]:
    given = list(weights) if weights is not None else [1.0] * len(folders)
    if not folders:
        raise UsageError("no adapter is given; name one with --adapter")
    if len(given) != len(folders):
        raise UsageError(f"{len(folders)} adapters have {len(given)} weights; give each adapter one")
    if not all(math.isfinite(weight) for weight in given):
        raise UsageError(f"the weights of adapters must be numbers, not {given}")
    return given


class _Merger:
    """A base and its adapters, checked against each other; nothing is read of them but headers.

    Attributes:
        changes: what the adapters do, by tensor of the base.
        names: of the tensors to write, in the base's order.
        untied: embedding and head were one tensor and cannot be any longer.
    """

    def __init__(self, base: Path, folders: list[Path], weights: list[float], device: str | None) -> None:
        self.config = read_config(base)
        if self.config.get("quantization_config") is not None:
            raise SightlineError(
                f"{base} is quantized, and an adapter cannot be added to that; merge into the model that it was "
                "made from, then quantize the result"
            )
        self.base, self.folders, self.weights = base, folders, weights
        self.store = Store(base)
        self.adapters = [open_adapter(folder, self.store) for folder in folders]
        self.device = None if device is None else find(device).torch_device
        self.changes: dict[str, list[Part]] = {}
        embedding = _embedding(self.store)
        for adapter, weight in zip(self.adapters, weights, strict=True):
            check_base(adapter, self.config)
            if self._tied and embedding is not None:
                follow_tie(adapter, embedding, _HEAD)
            for target, change in adapter.changes.items():
                self.changes.setdefault(target, []).append(Part(adapter, change, weight))
        self.names, self.untied = self._names()
        for name in self.changes:
            if name in self.names:
                self._update(name)  # what cannot be merged together is known before anything is written

    def tensors(self) -> Iterator[Planned]:
        """Everything to write; what no adapter changes is copied as it is."""
        for name in self.names:
            entry = self.store.entries[self._source(name)]
            descriptor = self.store.descriptor(entry.file)
            if name not in self.changes:
                yield Planned(name, entry.dtype, entry.shape, _no_rows, source=(descriptor, entry))
            else:
                yield Planned(name, entry.dtype, entry.shape, _Rows(self, name))

    @property
    def _tied(self) -> bool:
        return _HEAD not in self.store or bool(self.config.get("tie_word_embeddings"))

    def update(self, name: str) -> Update:
        return self._update(name)

    def _update(self, name: str) -> Update:
        entry = self.store.entries[self._source(name)]
        descriptor = self.store.descriptor(entry.file)
        return Update(
            lambda first, last: entry.read_rows(descriptor, first, last),
            entry.rows,
            self.changes[name],
            self.device,
        )

    def _source(self, name: str) -> str:
        """The base's tensor that `name` begins as: only the head of a tied model is not there itself."""
        if name in self.store:
            return name
        embedding = _embedding(self.store)
        assert embedding is not None
        return embedding

    def _names(self) -> tuple[list[str], bool]:
        """The tensors to write, and whether a tied embedding and head part because only one was trained.

        An adapter on a tied embedding changes the embedding and not the head (PEFT leaves the head the base's; only
        single trained tokens it puts on both), so the two can share one tensor no longer.
        """
        names, head = list(self.store), _HEAD
        embedding = _embedding(self.store)
        if not self._tied or embedding is None or not {embedding, head} & set(self.changes):
            return names, False
        if self._same(embedding, head):
            if head not in self.store:
                self.changes.pop(head, None)
            return names, False
        return (names if head in self.store else [*names, head]), True

    def _same(self, one: str, other: str) -> bool:
        """Whether two tensors that begin alike are alike afterwards."""
        import torch

        if not {one, other} <= set(self.changes):
            return False
        first, second = self._update(one), self._update(other)
        entry = self.store.entries[one]
        return all(torch.equal(first.rows(*part), second.rows(*part)) for part in row_chunks(entry))


class _Rows:
    """Rows of a changed tensor; its adapters' tensors are in memory only while they are asked for in a row."""

    def __init__(self, merger: _Merger, name: str) -> None:
        self._merger, self._name = merger, name
        self._update: Update | None = None

    def __call__(self, first: int, last: int) -> torch.Tensor:
        if self._update is None or first == 0:
            self._update = self._merger.update(self._name)
        rows = self._update.rows(first, last)
        if last == self._merger.store.entries[self._merger._source(self._name)].rows:
            self._update = None
        return rows


def _no_rows(first: int, last: int) -> torch.Tensor:
    raise RuntimeError("a tensor that is copied has no rows to make")


def _write(
    merger: _Merger, shards: dict[str, list[Planned]], output: str | Path, limit: int, resume: bool
) -> None:
    total = sum(tensor.bytes for part in shards.values() for tensor in part)
    files = [entry.file for entry in merger.store.entries.values()]
    files += [entry.file for one in merger.adapters for entry in one.store.entries.values()]
    plan = {
        "job": "merge",
        "weights": merger.weights,
        "shards": limit,
        "device": str(merger.device or "cpu"),
        "configuration": merger.config,
        "adapters": [adapter.settings for adapter in merger.adapters],
        "sources": sources(files),
    }
    with (
        Job(output, plan, bytes=total, resume=resume) as job,
        Progress("merging", total, "bytes") as progress,
    ):
        for name, part in shards.items():
            if not job.file(name, lambda file, part=part: write_safetensors(file, part, progress.advance)):  # type: ignore[misc]
                progress.advance(sum(tensor.bytes for tensor in part))
        write_index(job.folder, shards)
        _copy_companions(job.folder, merger.folders[0], merger.base)
        write_json(job.folder / "config.json", _untied(merger.config) if merger.untied else merger.config)


def _embedding(store: Store) -> str | None:
    return next((name for name in store if name.endswith("embed_tokens.weight")), None)


def _untied(config: dict[str, Any]) -> dict[str, Any]:
    config = {**config, "tie_word_embeddings": False}
    if isinstance(config.get("text_config"), dict):
        config["text_config"] = {**config["text_config"], "tie_word_embeddings": False}
    return config


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
