"""From a float weight to integers and scales and back: pure functions on one tensor, the same for disk and memory.

A weight is `integer * scale`, without zero points. Scales are rounded to the dtype in which they are stored before
the integers are chosen, so what a kernel computes with is exactly what the file holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sightline.errors import SightlineError

# Rows that are worked on at a time keep the float32 copies in the processor's cache (1 Mi elements, 4 MiB).
_PIECE = 1 << 20
# Where the extreme weight of a group may land: at 7 or -8 it is kept, beyond it is clipped and the others get finer
# steps. The levels reach farther down than up, so a group whose extreme is positive has a negative scale at -8; on the
# demo's weights that takes another sixth off the squared error, after a quarter that clipping takes.
_REACHES = (7.0, 7.5, -8.0, -8.5, -9.0)
_INT32_OF = tuple(range(0, 32, 4))


class NotFiniteError(ValueError):
    """A weight holds numbers that no integer stands for."""


@contextmanager
def named(name: str, where: str | Path | None = None) -> Iterator[None]:
    """Name the tensor that is quantized in the block.

    Raises:
        SightlineError: in place of NotFiniteError.
    """
    try:
        yield
    except NotFiniteError as error:
        place = "" if where is None else f" in {where}"
        raise SightlineError(
            f"{name}{place} holds nan, infinite or far too large numbers and cannot be quantized; the weights are "
            "damaged: copy them again, or take those of another training step"
        ) from error


def quantize_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One scale for each output channel.

    Args:
        weight: [N, K], any float dtype.

    Returns:
        (int8 [N, K] in -127..127, scale [N, 1]: bfloat16 for a bfloat16 weight, else float32)

    Raises:
        NotFiniteError: the weight holds nan or infinity.
    """
    kind = torch.bfloat16 if weight.dtype == torch.bfloat16 else torch.float32
    integers = torch.empty_like(weight, dtype=torch.int8)
    scales = weight.new_empty(len(weight), 1, dtype=kind)
    for rows in _pieces(weight):
        part = weight[rows].float()
        peak = part.abs().amax(1, keepdim=True)
        _check_finite(peak)
        scale = _never_zero(peak / 127).to(kind)
        scales[rows] = scale
        integers[rows] = (part / scale).round_().clamp_(-127, 127).to(torch.int8)
    return integers, scales


def quantize_int4(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One scale for each `group` neighbours of a row, chosen among a few for the least squared error.

    Args:
        weight: [N, K], any float dtype; K a multiple of `group`.

    Returns:
        (int8 [N, K] in -8..7, bfloat16 scale [N, K / group], which may be negative)

    Raises:
        NotFiniteError: the weight holds nan, infinity or numbers whose squares are.
    """
    integers = torch.empty_like(weight, dtype=torch.int8)
    scales = weight.new_empty(len(weight), weight.shape[1] // group, dtype=torch.bfloat16)
    for rows in _pieces(weight):
        part = weight[rows].float().unflatten(1, (-1, group))
        low, high = part.amin(2, keepdim=True), part.amax(2, keepdim=True)
        extreme = torch.where(high > -low, high, low)
        best = torch.full_like(extreme, torch.inf)
        scale = torch.empty_like(extreme)
        for reach in _REACHES:
            candidate = (
                _never_zero((extreme.abs() if reach > 0 else extreme) / reach).to(torch.bfloat16).float()
            )
            error = (_to_levels(part, candidate) * candidate - part).square_().sum(2, keepdim=True)
            scale = torch.where(error < best, candidate, scale)
            best = torch.minimum(error, best)
        _check_finite(best)
        scales[rows] = scale[..., 0].to(torch.bfloat16)
        integers[rows] = _to_levels(part, scale).flatten(1).to(torch.int8)
    return integers, scales


def dequantize(integers: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """integers [N, K], scale [N, groups of K] -> [N, K]; the product is taken in float32 and rounded once."""
    spread = integers.unflatten(1, (scale.shape[1], -1)).float() * scale.float()[..., None]
    return spread.flatten(1).to(dtype)


def widen(integers: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A 4 bit weight [N, K] with scales [N, groups] as int8 [N, K] with one float32 scale a channel [N, 1].

    The second rounding moves a weight by at most 1/254 of its channel's largest.
    """
    wide = torch.empty_like(integers)
    scales = scale.new_empty(len(integers), 1, dtype=torch.float32)
    for rows in _pieces(integers):
        wide[rows], scales[rows] = quantize_int8(dequantize(integers[rows], scale[rows], torch.float32))
    return wide, scales


def pack_int4(integers: torch.Tensor) -> torch.Tensor:
    """int8 [N, K] in -8..7 -> int32 [N, K / 8] as compressed-tensors has it: plus 8, the first in the lowest bits."""
    packed = integers.new_empty(len(integers), integers.shape[1] // 8, dtype=torch.int32)
    for rows in _pieces(integers):
        levels = (integers[rows].to(torch.int32) + 8).unflatten(1, (-1, 8))
        value = levels[..., 0].clone()
        for place, shift in enumerate(_INT32_OF[1:], start=1):
            value |= levels[..., place] << shift
        packed[rows] = value
    return packed


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_int4`: int32 [N, K / 8] -> int8 [N, K] in -8..7, on the device of `packed`."""
    # Made there: a list would be copied from the host, which waits for the device and cannot be captured in a graph.
    shifts = torch.arange(0, 32, 4, dtype=torch.int32, device=packed.device)
    levels = torch.empty(len(packed), packed.shape[1] * 8, dtype=torch.int8, device=packed.device)
    for rows in _pieces(levels):
        levels[rows] = ((packed[rows][..., None] >> shifts & 15) - 8).flatten(1).to(torch.int8)
    return levels


def _to_levels(part: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (part / scale).round_().clamp_(-8, 7)


def _check_finite(found: torch.Tensor) -> None:
    """`found` is made of all elements of a piece, so that a single one shows; it is small."""
    if not bool(found.isfinite().all()):
        raise NotFiniteError("the weight holds nan or infinite numbers")


def _never_zero(scale: torch.Tensor) -> torch.Tensor:
    """A row or group of zeros gets the scale 1: any is right."""
    return torch.where(scale != 0, scale, 1.0)


def _pieces(weight: torch.Tensor) -> list[slice]:
    rows = max(1, _PIECE // max(1, weight.shape[1]))
    return [slice(start, start + rows) for start in range(0, len(weight), rows)]
