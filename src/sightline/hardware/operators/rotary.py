"""Rotary position embedding: pairs of numbers of a head, turned by the angle of the token's position."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch

from sightline.errors import UsageError
from sightline.hardware.operators.forms import Operator, drawn

_MODES = {"rotated_half": "half", "rotated_interleaved": "interleave"}


def rotary_position_embedding(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    rotated_mode: str = "rotated_half",
    head_first: bool = False,
    fused: bool = True,
) -> torch.Tensor:
    """`x * cos + rotate(x) * sin`, computed in the dtype of `cos` and given back in that of `x`.

    Args:
        x: [B, S, N, D], or [B, N, S, D] with `head_first`, or any other order of four with 4-D `cos` and `sin`.
        cos, sin: [S, D] over the full width D, or 4-D and broadcastable to `x`, both of one shape.
        rotated_mode: "rotated_half" turns the halves of D against each other, rotate(x) = (-second, first);
            "rotated_interleaved" turns neighbours, rotate(x) = (-x1, x0, -x3, x2, ...).
        fused: False computes the definition in plain torch on every device.

    Returns:
        A tensor like `x`.

    Raises:
        UsageError: the mode or the shapes are none of these.
    """
    if rotated_mode not in _MODES:
        raise UsageError(
            f"rotated_mode {rotated_mode!r} is unknown; give rotated_half or rotated_interleaved"
        )
    cos, sin = _placed(x, cos, sin, head_first)
    return _ROTARY(x, cos, sin, mode=_MODES[rotated_mode], fused=fused)


def _placed(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, head_first: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    if x.dim() != 4 or x.shape[-1] % 2:
        raise UsageError(
            f"the rotary embedding takes four dimensions, the last one even, not {tuple(x.shape)}"
        )
    if cos.shape != sin.shape or cos.dtype != sin.dtype:
        raise UsageError(
            f"cos and sin must be alike, not {cos.dtype} {tuple(cos.shape)} and {sin.dtype} {tuple(sin.shape)}"
        )
    placed = cos.shape
    if cos.dim() == 2:
        placed = torch.Size((1, 1, *cos.shape) if head_first else (1, cos.shape[0], 1, cos.shape[1]))
    fits = len(placed) == 4 and placed[-1] == x.shape[-1]
    if not fits or any(given not in (1, wanted) for given, wanted in zip(placed, x.shape, strict=True)):
        order = "[B, N, S, D]" if head_first else "[B, S, N, D]"
        raise UsageError(
            f"cos and sin {tuple(cos.shape)} do not fit x {tuple(x.shape)} as {order}; give [S, D] or four "
            "dimensions that broadcast, over the full width D"
        )
    return cos.view(placed) if cos.dim() == 2 else cos, sin.view(placed) if sin.dim() == 2 else sin


def _plain(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, mode: str) -> torch.Tensor:
    wide = x.to(cos.dtype)
    if mode == "half":
        first, second = wide.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
    else:
        turned = torch.stack((-wide[..., 1::2], wide[..., ::2]), dim=-1).flatten(-2)
    return (wide * cos + turned * sin).to(x.dtype)


def _npu(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, mode: str) -> torch.Tensor:
    """npu_rotary_mul within the limits of its page (docs/zh/custom_APIs/torch_npu/torch_npu-npu_rotary_mul.md)."""
    if not _documented(x.shape, cos.shape, mode):
        return _plain(x, cos, sin, mode=mode)
    torch_npu: Any = importlib.import_module("torch_npu")
    turned: torch.Tensor = torch_npu.npu_rotary_mul(x.to(cos.dtype), cos, sin, mode)
    return turned.to(x.dtype)


def _documented(x: torch.Size, cos: torch.Size, mode: str) -> bool:
    if x[-1] >= 896:
        return False
    spans = [axis for axis in range(3) if cos[axis] != 1]  # what the angles depend on besides D
    if mode == "interleave":
        others = [x[axis] for axis in range(3) if axis not in spans]
        return len(spans) == 1 and others[0] * others[1] < 1000
    batch_or_heads_fit = sorted(x[:3])[1] < 1000
    return batch_or_heads_fit and (len(spans) == 1 or spans in ([0, 1], [0, 2]) or cos == x)


def _sample(device: torch.device, dtype: torch.dtype) -> Sequence[torch.Tensor]:
    x, angles = drawn(device, torch.float32, (2, 7, 3, 32), (1, 7, 1, 32))
    return x.to(dtype), angles.cos().to(dtype), angles.sin().to(dtype)


_ROTARY = Operator("rotary_position_embedding", _plain, _npu, _sample)
