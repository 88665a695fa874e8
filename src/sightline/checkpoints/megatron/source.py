"""A Hugging Face folder as the source of a conversion: every tensor of its model, by canonical name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.checkpoints.entry import Entry
from sightline.checkpoints.megatron.architecture import Architecture
from sightline.checkpoints.names import canonical
from sightline.checkpoints.store import Store, read_config
from sightline.checkpoints.writing import row_chunks
from sightline.errors import SightlineError

_EMBEDDING, _HEAD = "text.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class Source:
    """
    Attributes:
        entries: of the model's tensors, by canonical name.
    """

    folder: Path
    config: dict[str, Any]
    model: Architecture
    store: Store
    entries: dict[str, Entry]

    def descriptor(self, entry: Entry) -> int:
        return self.store.descriptor(entry.file)


def open_source(folder: str | Path) -> Source:
    """Open a folder and hold its tensors against its config.json.

    Raises:
        SightlineError: a tensor is missing, unknown or of another shape; the text names it.
    """
    folder = Path(folder)
    config = read_config(folder)
    model = Architecture.of(config, str(folder))
    store = Store(folder)
    entries = _by_canonical_name(store)
    expected = model.tensors()
    if model.tied and _HEAD in entries:
        if not _same(store, entries[_EMBEDDING], entries[_HEAD]):
            raise SightlineError(
                f"{folder} says tie_word_embeddings, but its lm_head.weight differs from its embedding; set "
                "tie_word_embeddings to false in config.json, or drop the head"
            )
        del entries[_HEAD]
    check_names(str(folder), expected, {name: entry.shape for name, entry in entries.items()})
    return Source(folder, config, model, store, entries)


def check_names(where: str, expected: dict[Any, tuple[int, ...]], found: dict[Any, tuple[int, ...]]) -> None:
    """Exactly the expected tensors, with their shapes.

    Raises:
        SightlineError: the first that is missing, left over or different.
    """
    missing = [str(name) for name in expected if name not in found]
    if missing:
        raise SightlineError(f"{where} lacks {_some(missing)}")
    unknown = [str(name) for name in found if name not in expected]
    if unknown:
        raise SightlineError(f"{where} holds {_some(unknown)}, for which the layout has no place")
    for name, shape in expected.items():
        if found[name] != shape:
            raise SightlineError(
                f"{where}: {name} is {list(found[name])}, but the model's sizes make it {list(shape)}"
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _by_canonical_name(store: Store) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    for name, entry in store.entries.items():
        ours = canonical(name)
        if ours in entries:
            raise SightlineError(f"{store.path} holds {ours} under two names, one of them {name}")
        entries[ours] = entry
    return entries


def _same(store: Store, one: Entry, other: Entry) -> bool:
    import torch

    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(
        torch.equal(
            one.read_rows(store.descriptor(one.file), first, last).view(torch.uint8),
            other.read_rows(store.descriptor(other.file), first, last).view(torch.uint8),
        )
        for first, last in row_chunks(one)
    )
