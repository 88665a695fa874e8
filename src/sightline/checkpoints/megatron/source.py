"""A Hugging Face folder as the source of a conversion: every tensor of its model, by canonical name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.checkpoints.entry import Entry
from sightline.checkpoints.megatron.architecture import Architecture
from sightline.checkpoints.store import Store, read_config
from sightline.checkpoints.writing import same_bytes
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
    entries = store.by_canonical_name()
    source = Source(folder, config, model, store, entries)
    expected = model.tensors()
    if model.tied and _HEAD in entries:
        if not same_bytes(entries[_EMBEDDING], entries[_HEAD], source.descriptor):
            raise SightlineError(
                f"{folder} says tie_word_embeddings, but its lm_head.weight differs from its embedding; set "
                "tie_word_embeddings to false in config.json, or drop the head"
            )
        del entries[_HEAD]
    check_names(str(folder), expected, {name: entry.shape for name, entry in entries.items()})
    return source


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
