"""Weight files written tensor by tensor, a few rows at a time, so that memory does not grow with a tensor's size."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.checkpoints.entry import Entry, name_of, size_of
from sightline.checkpoints.torch_file import reserve_torch_file
from sightline.errors import SightlineError

if TYPE_CHECKING:
    import torch

CHUNK = 32 * 2**20
"""Bytes of a stored tensor that are copied at a time."""

# Of a tensor that is made: what stays in the processor's caches.
_ROWS = 2 * 2**20

# What copy_file_range says of file systems that it does not know, or does not know together.
_UNABLE = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)

Rows = Callable[[int, int], "torch.Tensor"]
Advance = Callable[[int], None]


@dataclass(frozen=True)
class Planned:
    """A tensor that is to be written.

    Attributes:
        rows: gives rows of it, [last - first, columns], contiguous, in `dtype`.
        source: descriptor and entry of a stored tensor with the same bytes, which then are copied without `rows`.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    rows: Rows
    source: tuple[int, Entry] | None = None
    _digest: list[str] = field(default_factory=list, repr=False, compare=False)

    @property
    def entry(self) -> Entry:
        """As a tensor without a place."""
        return Entry(Path(), self.dtype, self.shape)

    @property
    def bytes(self) -> int:
        return self.entry.bytes

    def sha256(self) -> str:
        """Of its bytes; known once it is written to a file of torch.save, else it is made for this."""
        if not self._digest:
            found = hashlib.sha256()
            for data in self.chunks():
                found.update(data)
            self._digest.append(found.hexdigest())
        return self._digest[0]

    def chunks(self) -> Iterator[memoryview]:
        """Its bytes, a part at a time."""
        if self.source is not None:
            yield from _stored(*self.source)
            return
        for first, last in row_chunks(self.entry):
            rows = self.rows(first, last)
            if rows.numel() != (last - first) * self.entry.columns or name_of(rows.dtype) != self.dtype:
                raise RuntimeError(f"{self.name} was made as {rows.dtype} of {tuple(rows.shape)}")
            yield _view(rows)


def write_safetensors(
    file: Path, tensors: Sequence[Planned], advance: Advance = lambda _: None, *, hashed: bool = False
) -> None:
    """Write a file of safetensors; tensors with wider numbers stand first, so that each is aligned.

    Args:
        hashed: their `sha256` are made on the way.

    Raises:
        OSError: the disk is full, or cannot be written.
    """
    ordered = sorted(tensors, key=lambda tensor: -size_of(tensor.dtype))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        begin, end = end, end + tensor.bytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.flush()
        place = 8 + len(text)
        for tensor in ordered:
            _fill(out.fileno(), place, tensor, advance, hashed)
            place += tensor.bytes


def write_torch_file(
    file: Path,
    tensors: Mapping[tuple[str, ...], Planned],
    extra: Mapping[str, Any],
    advance: Advance = lambda _: None,
) -> None:
    """Write a file of torch.save: a dictionary with `tensors` under their keys, and `extra` at its top.

    Raises:
        OSError: the disk is full, or cannot be written.
    """
    content: dict[str, Any] = {}
    for keys, tensor in tensors.items():
        inside = content
        for key in keys[:-1]:
            inside = inside.setdefault(key, {})
        inside[keys[-1]] = (tensor.dtype, tensor.shape)
    try:
        places = reserve_torch_file(file, {**content, **extra})
    except RuntimeError as error:  # torch's writer tells a full disk so
        raise OSError(f"{error}".splitlines()[0]) from error
    with file.open("r+b") as out:
        for keys, tensor in tensors.items():
            _fill(out.fileno(), places[keys].offset, tensor, advance, hashed=True)


def row_chunks(entry: Entry, most: int = _ROWS) -> list[tuple[int, int]]:
    """Rows from, up to; of about `most` bytes each, and of one row at least."""
    width = max(1, entry.columns * size_of(entry.dtype))
    step = max(1, most // width)
    return [(first, min(first + step, entry.rows)) for first in range(0, entry.rows, step)]


def same_bytes(one: Entry, other: Entry, descriptor: Callable[[Entry], int]) -> bool:
    """Whether two stored tensors are the same numbers, bit for bit; `descriptor` opens the file of one."""
    import torch

    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return all(
        torch.equal(
            one.read_rows(descriptor(one), first, last).view(torch.uint8),
            other.read_rows(descriptor(other), first, last).view(torch.uint8),
        )
        for first, last in row_chunks(one)
    )


def _fill(descriptor: int, place: int, tensor: Planned, advance: Advance, hashed: bool = False) -> None:
    if tensor.source is not None and not hashed and _copied(descriptor, place, *tensor.source, advance):
        return
    found = hashlib.sha256()
    for data in tensor.chunks():
        _write(descriptor, place, data)
        if hashed:
            found.update(data)
        place += len(data)
        advance(len(data))
    if hashed:
        tensor._digest[:] = [found.hexdigest()]


def _copied(descriptor: int, place: int, source: int, entry: Entry, advance: Advance) -> bool:
    """Copy a stored tensor within the system, its bytes through no memory of ours; False where it cannot."""
    if not hasattr(os, "copy_file_range"):
        return False
    done = 0
    while done < entry.bytes:
        count = min(CHUNK, entry.bytes - done)
        try:
            count = os.copy_file_range(source, descriptor, count, entry.offset + done, place + done)
        except OSError as error:
            if done or error.errno not in _UNABLE:
                raise
            return False
        if not count:
            raise SightlineError(f"{entry.file} was cut off while it was read; download it again")
        done += count
        advance(count)
    return True


def _stored(source: int, entry: Entry) -> Iterator[memoryview]:
    done = 0
    while done < entry.bytes:
        data = os.pread(source, min(CHUNK, entry.bytes - done), entry.offset + done)
        if not data:
            raise SightlineError(f"{entry.file} was cut off while it was read; download it again")
        yield memoryview(data)
        done += len(data)


def _write(descriptor: int, place: int, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], place + done)


def _view(rows: torch.Tensor) -> memoryview:
    import torch

    return memoryview(rows.contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
