"""A folder of safetensors as a lazy mapping from name to tensor: headers first, tensors when asked for.

The layout is Hugging Face's: either `model.safetensors`, or shards listed by `model.safetensors.index.json`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.checkpoints.entry import DTYPES, Entry
from sightline.checkpoints.names import canonical
from sightline.checkpoints.opened import OpenFiles
from sightline.errors import SightlineError
from sightline.files import check_fetched, read_object

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


class Store:
    """The tensors of a model folder, or of one safetensors file. Opening it reads only the headers.

    Raises:
        SightlineError: not a folder of weights, a shard is missing, cut off or unreadable, the index and the
            shards do not agree, or two shards hold the same tensor.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.entries: dict[str, Entry] = {}
        self._open = OpenFiles()
        index: dict[str, str] | None = None
        listing = _index_of(self.path)
        if listing is not None:
            index = _read_index(listing)
        for file in _files(self.path, index):
            for name, entry in _header(file).items():
                if name in self.entries:
                    other = self.entries[name].file.name
                    raise SightlineError(f"{self.path}: {name} stands in both {other} and {file.name}")
                self.entries[name] = entry
        if index is not None:
            self._agree(index, listing)

    def _agree(self, index: dict[str, str], listing: Path | None) -> None:
        for name, file in index.items():
            if name not in self.entries or self.entries[name].file.name != file:
                raise SightlineError(f"{listing} places {name} in {file}, which does not hold it")

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.entries[name].shape

    def dtype(self, name: str) -> str:
        return self.entries[name].dtype

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries.values())

    def by_canonical_name(self) -> dict[str, Entry]:
        """The tensors by our names for them (`sightline.checkpoints.names`).

        Raises:
            SightlineError: one stands under the names of two generations of transformers.
        """
        entries: dict[str, Entry] = {}
        for name, entry in self.entries.items():
            ours = canonical(name)
            if ours in entries:
                raise SightlineError(f"{self.path} holds {ours} under two names, one of them {name}")
            entries[ours] = entry
        return entries

    def get(self, name: str) -> torch.Tensor:
        """Read one tensor to the CPU, in the dtype in which it is stored.

        Raises:
            KeyError: no such tensor. SightlineError: its file cannot be read any more.
        """
        entry = self.entries[name]
        return entry.read(self.descriptor(entry.file))

    def descriptor(self, file: Path) -> int:
        """An open file of this store; it stays open until the store is gone."""
        return self._open.descriptor(file)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The model's config.json.

    Raises:
        SightlineError: `folder` is not a model folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SightlineError(
            f"{folder} is not a folder; give the path of a downloaded model (a hub name is not fetched)"
        )
    return read_json(folder / "config.json", f"{folder} is not a model folder: it has no config.json")


def read_json(path: Path, absent: str) -> dict[str, Any]:
    """A JSON object from a file; `absent` is the sentence of the error if there is no such file."""
    if not path.is_file():
        raise SightlineError(absent)
    return read_object(path)


def _read_index(path: Path) -> dict[str, str]:
    index = read_json(path, f"{path} does not exist").get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(file, str) for file in index.values()):
        raise SightlineError(f'{path} has no "weight_map" that says which shard holds which tensor')
    return index


def _index_of(path: Path) -> Path | None:
    """The index of a folder of shards, whatever the files are called (diffusers has names of its own)."""
    if (path / INDEX).is_file():
        return path / INDEX
    found = sorted(path.glob("*.safetensors.index.json")) if path.is_dir() else []
    return found[0] if len(found) == 1 else None


def _files(path: Path, index: dict[str, str] | None) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise SightlineError(f"{path} does not exist; give a folder with {SINGLE} or its shards")
    if index is not None:
        files = [path / name for name in sorted(set(index.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise SightlineError(f"{path} lacks the shard {', '.join(missing)}; download the model again")
        return files
    if (path / SINGLE).is_file():
        return [path / SINGLE]
    shards = list(path.glob("*.safetensors"))
    if len(shards) == 1:
        return shards
    if shards:
        raise SightlineError(f"{path} has {len(shards)} safetensors files but no {INDEX} that lists them")
    if any(path.glob("*.bin")):
        raise SightlineError(f"{path} has its weights as pickled .bin files; save the model as safetensors")
    raise SightlineError(f"{path} has no weights: neither {SINGLE} nor {INDEX}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} stands in it twice")
    return found


def _header(file: Path) -> dict[str, Entry]:
    """The header of one file: its length (8 bytes, little endian), then JSON; the tensors follow it."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= size - 8:
                check_fetched(file)
                raise SightlineError(f"{file} is cut off or not a safetensors file; download it again")
            header = json.loads(opened.read(length), object_pairs_hook=_once)
    except (OSError, ValueError) as error:
        raise SightlineError(f"{file} cannot be read as safetensors: {error}") from error
    try:
        header.pop("__metadata__", None)
        end = 8 + length + max((value["data_offsets"][1] for value in header.values()), default=0)
        entries = {
            name: Entry(file, value["dtype"], tuple(value["shape"]), 8 + length + value["data_offsets"][0])
            for name, value in header.items()
        }
    except (AttributeError, LookupError, TypeError) as error:
        raise SightlineError(f"{file} is damaged or not a safetensors file; download it again") from error
    if size < end:
        raise SightlineError(f"{file} is cut off: {size:,} bytes of {end:,}; download it again")
    for name, entry in entries.items():
        first, last = header[name]["data_offsets"]
        if entry.dtype in DTYPES and last - first != entry.bytes:
            raise SightlineError(
                f"{file} is damaged: {name} is {entry.dtype} {list(entry.shape)}, which is not the "
                f"{last - first:,} bytes it has; download it again"
            )
    return entries
