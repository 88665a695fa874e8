"""RMSNorm, and LayerNorm with the scale and shift of a diffusion transformer's modulation."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from sightline.errors import UsageError
from sightline.hardware.operators.forms import Operator, drawn


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor | None = None, eps: float = 1e-6, fused: bool = True
) -> torch.Tensor:
    """`x / sqrt(mean(x^2) + eps)` over the last dimension, rounded to the dtype of `x`, times `weight`.

    The arithmetic of transformers: squares and root in float32. torch_npu's operator multiplies by the weight before
    it rounds, which differs by one rounding of the dtype.

    Args:
        x: [..., D].
        weight: [D], of the dtype of `x` or float32; None is all ones.
        fused: False computes the definition in plain torch on every device.

    Returns:
        A tensor like `x`.

    Raises:
        UsageError: the weight has another length.
    """
    if weight is not None and weight.shape != x.shape[-1:]:
        raise UsageError(f"the weight of an RMSNorm of {tuple(x.shape)} is {tuple(weight.shape)}, not [D]")
    return _RMS_NORM(x, weight, eps=float(eps), fused=fused)


class RMSNorm(nn.Module):
    """`rms_norm` as a layer with its weight."""

    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor, if_fused: bool = True) -> torch.Tensor:
        """[..., hidden_size] -> [..., hidden_size]"""
        return rms_norm(hidden_states, self.weight, self.variance_epsilon, fused=if_fused)


def layer_norm_scale_shift(
    layernorm: nn.LayerNorm, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor, fused: bool = True
) -> torch.Tensor:
    """`layernorm(x) * (1 + scale) + shift` in float32, rounded once to the dtype of `x`.

    Args:
        layernorm: over the last dimension D, with weight and bias or without.
        x: [B, S, D].
        scale, shift: [B, D] for all tokens of a sample, or broadcastable to `x` ([B, 1, D], [B, S, D], [D]).
        fused: False computes the definition in plain torch on every device.

    Returns:
        A tensor like `x`.

    Raises:
        UsageError: the shapes are none of these.
    """
    width = x.shape[-1]
    if tuple(layernorm.normalized_shape) != (width,) or x.dim() != 3:
        raise UsageError(
            f"layer_norm_scale_shift takes [B, S, D] and a LayerNorm over D, not {tuple(x.shape)} and one over "
            f"{tuple(layernorm.normalized_shape)}"
        )
    scale, shift = (_per_sample(part, x, name) for part, name in ((scale, "scale"), (shift, "shift")))
    return _SCALE_SHIFT(
        x, scale, shift, layernorm.weight, layernorm.bias, eps=float(layernorm.eps), fused=fused
    )


#: The name that MindIE SD has for it.
layernorm_scale_shift = layer_norm_scale_shift


def _per_sample(part: torch.Tensor, x: torch.Tensor, name: str) -> torch.Tensor:
    placed = part[:, None] if part.dim() == 2 else part
    if placed.dim() > 3 or any(
        a not in (1, b) for a, b in zip(placed.shape[::-1], x.shape[::-1], strict=False)
    ):
        raise UsageError(
            f"{name} {tuple(part.shape)} does not fit x {tuple(x.shape)}; give [B, D] or [B, S, D]"
        )
    return placed


def _plain_rms(x: torch.Tensor, weight: torch.Tensor | None, *, eps: float) -> torch.Tensor:
    wide = x.float()
    normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    return normed if weight is None else (normed * weight).to(x.dtype)


def _npu_rms(x: torch.Tensor, weight: torch.Tensor | None, *, eps: float) -> torch.Tensor:
    """npu_rms_norm(self, gamma, epsilon) -> (y, rstd)"""
    torch_npu: Any = importlib.import_module("torch_npu")
    gamma = x.new_ones(x.shape[-1]) if weight is None else weight.to(x.dtype)
    normed: torch.Tensor = torch_npu.npu_rms_norm(x.contiguous(), gamma, epsilon=eps)[0]
    return normed


def _plain_scale_shift(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    eps: float,
) -> torch.Tensor:
    normed = functional.layer_norm(x.float(), x.shape[-1:], _wide(weight), _wide(bias), eps)
    return (normed * (1 + scale.float()) + shift.float()).to(x.dtype)


def _npu_scale_shift(
    x: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    *,
    eps: float,
) -> torch.Tensor:
    """One npu_layer_norm_eval a sample: (1 + scale) and shift, the same for all its tokens, are folded into the weight
    and the bias. It has no gradient; with one, or with a scale for each token, the definition is computed.
    """
    needed = (x, scale, shift, weight, bias)
    per_token = any(part.dim() == 3 and part.shape[1] != 1 for part in (scale, shift))
    if per_token or (
        torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in needed)
    ):
        return _plain_scale_shift(x, scale, shift, weight, bias, eps=eps)
    torch_npu: Any = importlib.import_module("torch_npu")
    batch, _, width = x.shape
    gain = (1 + scale.float()).expand(batch, 1, width)
    offset = shift.float().expand(batch, 1, width)
    if bias is not None:
        offset = torch.addcmul(offset, gain, bias.float())
    if weight is not None:
        gain = gain * weight.float()
    normed = [
        torch_npu.npu_layer_norm_eval(
            x[row].float(), [width], gain[row, 0].contiguous(), offset[row, 0].contiguous(), eps
        )
        for row in range(batch)
    ]
    return torch.stack(normed).to(x.dtype)


def _wide(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.float()


def _rms_sample(device: torch.device, dtype: torch.dtype) -> Sequence[torch.Tensor]:
    return drawn(device, dtype, (3, 5, 64), (64,))


def _scale_shift_sample(device: torch.device, dtype: torch.dtype) -> Sequence[torch.Tensor]:
    return drawn(device, dtype, (2, 5, 64), (2, 1, 64), (2, 1, 64), (64,), (64,))


_RMS_NORM = Operator("rms_norm", _plain_rms, _npu_rms, _rms_sample)
_SCALE_SHIFT = Operator("layer_norm_scale_shift", _plain_scale_shift, _npu_scale_shift, _scale_shift_sample)
