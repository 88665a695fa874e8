"""One stored tensor: where its bytes lie, and how any rectangle of it is read without mapping or loading the rest.

Every tensor is looked at as rows and columns: its first dimension, and all the others together. Nothing is kept
mapped, because pages of a mapped file count as resident memory until the system takes them back.
"""

from __future__ import annotations

import math
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sightline.errors import SightlineError

if TYPE_CHECKING:
    import torch

# safetensors' names of the types that a tensor of whole bytes can have, with torch's.
DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "I64": "int64",
    "U64": "uint64",
    "F64": "float64",
    "C64": "complex64",
}
_SIZES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
_SIZES |= {"I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4}
_SIZES |= {"I64": 8, "U64": 8, "F64": 8, "C64": 8}
_NAMES = {name: dtype for dtype, name in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies and what it is.

    Attributes:
        dtype: safetensors' name for it, like BF16.
        offset: of its first byte in the file.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * size_of(self.dtype)

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def columns(self) -> int:
        return math.prod(self.shape[1:])

    def read(self, descriptor: int) -> torch.Tensor:
        """The whole tensor, in the dtype in which it is stored, on the CPU."""
        return self.read_rows(descriptor, 0, self.rows).reshape(self.shape)

    def read_rows(self, descriptor: int, first: int, last: int) -> torch.Tensor:
        """[last - first, columns]"""
        width = self.columns * size_of(self.dtype)
        data = read_bytes(descriptor, self.offset + first * width, (last - first) * width, self.file)
        return data.view(torch_dtype(self.dtype)).reshape(last - first, self.columns)

    def read_rectangle(self, descriptor: int, first: int, last: int, left: int, right: int) -> torch.Tensor:
        """[last - first, right - left]: these rows, and of them these columns."""
        import numpy as np
        import torch

        if (left, right) == (0, self.columns):
            return self.read_rows(descriptor, first, last)
        size = size_of(self.dtype)
        width = self.columns * size
        start, count = self.offset + first * width, (last - first) * width
        strip = torch.empty(last - first, (right - left) * size, dtype=torch.uint8)
        if not strip.numel():
            return strip.view(torch_dtype(self.dtype))
        begin = start - start % mmap.ALLOCATIONGRANULARITY
        _check_length(descriptor, start + count, self.file)
        # Mapped for a moment only; a narrow strip of columns touches no more pages than it must.
        with mmap.mmap(descriptor, count + start - begin, offset=begin, access=mmap.ACCESS_READ) as pages:
            whole = np.frombuffer(pages, np.uint8, count, start - begin).reshape(last - first, width)
            strip.numpy()[:] = whole[:, left * size : right * size]
            del whole  # the map cannot be closed while it is looked at
        return strip.view(torch_dtype(self.dtype))


def size_of(dtype: str) -> int:
    """Bytes of one number of a safetensors dtype.

    Raises:
        SightlineError: a dtype that is not known here.
    """
    if dtype not in _SIZES:
        raise SightlineError(f"tensors of the type {dtype} are not known here; convert them to BF16 first")
    return _SIZES[dtype]


def torch_dtype(dtype: str) -> torch.dtype:
    """torch's type of a safetensors name."""
    import torch

    found: torch.dtype = getattr(torch, DTYPES[dtype])
    return found


def name_of(dtype: torch.dtype) -> str:
    """safetensors' name of torch's type."""
    return _NAMES[str(dtype).removeprefix("torch.")]


def read_bytes(descriptor: int, offset: int, count: int, file: Path) -> torch.Tensor:
    """uint8 [count]

    Raises:
        SightlineError: the file ends before, or the disk fails.
    """
    import torch

    data = torch.empty(count, dtype=torch.uint8)
    view = memoryview(data.numpy())  # type: ignore[arg-type]
    done = 0
    try:
        while done < count:
            got = os.preadv(descriptor, [view[done : done + 2**30]], offset + done)
            if got == 0:
                raise SightlineError(f"{file} was cut off while it was read; download it again")
            done += got
    except OSError as error:
        raise SightlineError(f"{file} cannot be read: {error.strerror or error}") from error
    return data


def _check_length(descriptor: int, end: int, file: Path) -> None:
    # Touching mapped pages behind the end of a file kills the process.
    if os.fstat(descriptor).st_size < end:
        raise SightlineError(f"{file} was cut off while it was read; download it again")
