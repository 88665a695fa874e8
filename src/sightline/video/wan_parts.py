"""What lies between the matrix products of a Wan block, by the form that is fastest on the tensors' device.

Compiled, and with a gradient, each is its definition: the arithmetic of diffusers' block, in float32, rounded once. On
an NPU and on CUDA it is the fused operator of `sightline.hardware.operators`. On a CPU torch's own kernels make fewer
passes over the tokens than the definition, whose float32 copies are slower there than everything else in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from sightline.hardware.operators.forms import Operator, drawn, kind_of
from sightline.hardware.operators.norms import layer_norm_scale_shift
from sightline.hardware.operators.rotary import rotary_position_embedding


def modulated(norm: Any, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """`norm(x) * (1 + scale) + shift`: x [B, S, D], scale and shift float32 [B, 1, D] or [B, S, D]."""
    alone = x.shape[0] == 1 and scale.shape[1] == 1 and norm.weight is None
    if not (_on_cpu(x) and alone):
        return layer_norm_scale_shift(norm, x, scale, shift)
    # The modulation is the same for all tokens: it is the weight and the bias of a LayerNorm, which torch's kernel
    # for CPUs takes in float32 beside tokens of any dtype.
    weight, bias = (1 + scale).flatten(), shift.flatten().contiguous()
    return functional.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


def normed(norm: Any, x: torch.Tensor) -> torch.Tensor:
    """A LayerNorm with weight and bias over x [B, S, D], in float32, rounded once."""
    if _on_cpu(x):
        return functional.layer_norm(
            x, norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps
        )
    nothing = torch.zeros(1, 1, x.shape[-1], device=x.device)
    return layer_norm_scale_shift(norm, x, nothing, nothing)


def gated(x: torch.Tensor, change: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """`x + change * gate`: x and change [B, S, D], gate float32 [B, 1, D] or [B, S, D]."""
    if _on_cpu(x):
        return torch.addcmul(x.float(), change.float(), gate).to(x.dtype)
    return _GATED(x, change, gate)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Neighbours of x [B, S, N, D] turned by the angles of [1, S, 1, D], whose neighbours are alike."""
    if not (_on_cpu(x) and cos.dtype == torch.float32):
        return rotary_position_embedding(x, cos, sin, "rotated_interleaved")
    # Neighbours as one complex number: one pass where the definition makes seven.
    angles = torch.complex(cos[..., ::2].contiguous(), sin[..., 1::2].contiguous())
    pairs = torch.view_as_complex(x.float().contiguous().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * angles).flatten(-2).to(x.dtype)


def _on_cpu(x: torch.Tensor) -> bool:
    return kind_of(x) == "cpu" and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _plain_gated(x: torch.Tensor, change: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    return (x.float() + change.float() * gate).to(x.dtype)


def _gated_sample(device: torch.device, dtype: torch.dtype) -> Sequence[torch.Tensor]:
    x, change, gate = drawn(device, torch.float32, (2, 5, 64), (2, 5, 64), (2, 1, 64))
    return x.to(dtype), change.to(dtype), gate


_GATED = Operator("gated", _plain_gated, _plain_gated, _gated_sample)
