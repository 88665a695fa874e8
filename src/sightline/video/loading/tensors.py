"""The tensors of a part as they lie on the disk, by name: of a folder, a safetensors file or a file of `torch.save`.

Opening reads headers only. Every tensor is read once, when its place in the model is known, so that no second copy of
a model is ever held.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.checkpoints.entry import Entry
from sightline.checkpoints.opened import OpenFiles
from sightline.checkpoints.store import Store
from sightline.checkpoints.torch_file import read_torch_file
from sightline.errors import SightlineError
from sightline.files import check_fetched

if TYPE_CHECKING:
    import torch

SINGLE = "diffusion_pytorch_model.safetensors"
# What other programs put around the names of a transformer's file.
_PREFIXES = ("model.diffusion_model.", "diffusion_model.")
_WRAPPERS = ("state_dict", "model", "model_state", "module")


@dataclass(frozen=True)
class Tensors:
    """Tensors by name.

    Attributes:
        where: the file or folder, for messages.
        entries: where each of them lies.
    """

    where: Path
    entries: Mapping[str, Entry]
    _open: OpenFiles = field(default_factory=OpenFiles, repr=False)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries.values())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one.

        Raises:
            SightlineError: there is none of this name.
        """
        if name not in self.entries:
            raise SightlineError(f"{self.where} has no tensor {name}; it is not the file it was taken for")
        return tuple(self.entries[name].shape)

    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU, in the dtype in which it is stored.

        Raises:
            SightlineError: its file cannot be read, or was cut off meanwhile.
        """
        entry = self.entries[name]
        return entry.read(self.descriptor(entry))

    def descriptor(self, entry: Entry) -> int:
        """The open file of one; it stays open until they are gone."""
        return self._open.descriptor(entry.file)

    def with_entries(self, entries: Mapping[str, Entry]) -> Tensors:
        """The same files under other names."""
        return Tensors(self.where, entries, self._open)


def open_tensors(path: Path) -> Tensors:
    """The tensors of a folder of safetensors, or of one file.

    A pickle is read without running what it may hold, and where it lies: nothing of it is loaded yet.

    Raises:
        SightlineError: there is no such file, it is damaged, cut off, or holds no tensors by name.
    """
    if not path.exists():
        raise SightlineError(f"{path} does not exist; give a file of weights or the folder that holds them")
    if path.is_file() and path.suffix != ".safetensors" and _is_pickle(path):
        entries: Mapping[str, Entry] = _of_torch_file(path)
    else:
        entries = Store(_single(path)).entries
    if not entries:
        raise SightlineError(f"{path} holds no tensors; download it again")
    return Tensors(path, _bare(entries))


def _single(path: Path) -> Path:
    """diffusers' file of a folder, where others lie beside it (another precision, an adapter)."""
    index = any(path.glob("*.safetensors.index.json"))
    return path / SINGLE if not index and (path / SINGLE).is_file() else path


def _is_pickle(path: Path) -> bool:
    """By its beginning: a zip archive, or a bare pickle of torch before 1.6."""
    try:
        with path.open("rb") as file:
            begin = file.read(4)
    except OSError as error:
        raise SightlineError(f"cannot read {path}: {error.strerror or error}") from error
    return begin == b"PK\x03\x04" or begin[:1] == b"\x80" or path.suffix in (".pth", ".pt", ".bin", ".ckpt")


def _of_torch_file(path: Path) -> dict[str, Entry]:
    try:
        check_fetched(path)
        places, _ = read_torch_file(path)
    except OSError as error:
        raise SightlineError(f"cannot read {path}: {error.strerror or error}") from error
    except KeyError as error:
        raise SightlineError(
            f"{path} holds tensors of the type {error.args[0]}; save it again in bfloat16"
        ) from error
    found: dict[str, Entry] = {}
    for keys, entry in places.items():
        name = keys[-1]
        if len(keys) > 2 or (len(keys) == 2 and keys[0] not in _WRAPPERS) or name in found:
            raise SightlineError(
                f"{path} has {'.'.join(keys)} where tensors by name were expected; save the model's state_dict alone"
            )
        found[name] = entry
    return found


def _bare(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """Without the prefix that all names have in common with another program's model."""
    for prefix in _PREFIXES:
        if entries and all(name.startswith(prefix) for name in entries):
            return {name.removeprefix(prefix): entry for name, entry in entries.items()}
    return dict(entries)
