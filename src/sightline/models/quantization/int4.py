"""A linear layer with weights in 4 bit: a quarter of the bytes to read when one sequence is decoded.

torch's 4 bit product on CPUs is made for few rows; its time grows with every row. Above `_FEW_ROWS` the same weights,
widened to 8 bit when the layer is prepared, go through the 8 bit product, which costs another byte a weight in memory
and rounds the activations.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sightline.models.quantization.int8 import OneDnnKernel, has_onednn
from sightline.models.quantization.linear import QuantizedLinear
from sightline.models.quantization.weights import dequantize, pack_int4, quantize_int4, unpack_int4, widen

GROUPS = (32, 64, 128, 256)  # that torch's kernels know
GROUP = 64
_FEW_ROWS = 3  # measured: at 4 rows the 8 bit product is as fast on wide layers, at 6 on all
_BLOCK = 16  # torch's CPU kernel wants a multiple of this many output channels
_PACK_ROWS = 64 * 256  # packed at a time: torch wants the levels as int32, four bytes for half a one


class Int4Linear(QuantizedLinear):
    """W in 4 bit, one bfloat16 scale for each group of inputs of an output channel."""

    stored = "weight_packed"

    def __init__(self, packed: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """packed int32 [N, K / 8] (weights.pack_int4), scale bfloat16 [N, K / group], bias [N]."""
        super().__init__(packed, scale, bias)
        self.in_features = packed.shape[1] * 8
        self.group = self.in_features // scale.shape[1]

    @classmethod
    def from_linear(
        cls, weight: torch.Tensor, bias: torch.Tensor | None = None, *, group: int = GROUP
    ) -> Int4Linear:
        """Quantize a float weight [N, K]; K must be a multiple of `group`, one of GROUPS."""
        integers, scale = quantize_int4(weight.detach(), group)
        return cls(pack_int4(integers), scale, None if bias is None else bias.detach())

    def make_kernel(self, weight: torch.Tensor) -> Any:
        on_cpu = weight.device.type == "cpu" and has_onednn()
        return (CpuKernel if on_cpu else FloatKernel)(weight, self.weight_scale, self.group)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, group={self.group}, bias={self.bias is not None}"


class CpuKernel:
    """torch's 4 bit product for a few rows, the 8 bit product for more."""

    def __init__(self, packed: torch.Tensor, scale: torch.Tensor, group: int) -> None:
        integers = unpack_int4(packed)
        self.many = OneDnnKernel(*widen(integers, scale))
        self.group, self.features = group, len(integers)
        missing = -len(integers) % _BLOCK
        if missing:
            integers = nn.functional.pad(integers, (0, 0, 0, missing))
            scale = nn.functional.pad(scale, (0, 0, 0, missing))
        self.packed = torch.cat(
            [
                torch.ops.aten._convert_weight_to_int4pack_for_cpu(part.to(torch.int32) + 8, 1)
                for part in integers.split(_PACK_ROWS)
            ]
        )
        steps = scale.t().contiguous()
        self.scales = torch.stack((steps, torch.zeros_like(steps)), dim=2)  # [K / group, N, (scale, zero)]

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if len(x) > _FEW_ROWS:
            return self.many(x, bias)
        if x.dtype != self.scales.dtype:  # the kernel wants them alike, and a model has one dtype
            self.scales = self.scales.to(x.dtype)
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.contiguous(), self.packed, self.group, self.scales
        )
        if product.shape[1] != self.features:
            product = product[:, : self.features]
        return product if bias is None else product.add_(bias)


class FloatKernel:
    """Any device: the weight is made float again for each product; saves memory, not time."""

    def __init__(self, packed: torch.Tensor, scale: torch.Tensor, group: int) -> None:
        self.packed, self.scale = packed, scale

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return nn.functional.linear(x, dequantize(unpack_int4(self.packed), self.scale, x.dtype), bias)
