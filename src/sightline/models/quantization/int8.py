"""A linear layer with weights and activations in 8 bit: half the bytes to read, twice the rate of bfloat16 products.

Every row of the input has a scale of its own, so a token's result does not depend on what else is in the batch.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from sightline.models.quantization.linear import QuantizedLinear
from sightline.models.quantization.weights import dequantize, quantize_int8

# Outputs that stay in the cache are scaled there; measured: oneDNN falls to half its rate above about 20 MB.
_SLICE_BYTES = 20_000_000
_SLICE_ROWS = 512
_FEW = 1 << 15  # elements up to which the number of operations counts, not the elements
_QUANTIZED_TOGETHER = 1 << 18  # elements whose float32 copies stay in the caches


@functools.lru_cache
def _constants(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The zero point with a half, so that cutting off rounds; and what a row of zeros has for its largest, not 0."""
    with torch.inference_mode(False):  # such tensors may be used anywhere
        return torch.tensor([128.5], device=device), torch.tensor([1e-30], device=device)


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row of `x` [rows, K] as 8 bit integers around 128.

    Returns:
        (q uint8 [rows, K] in 1..255, largest [rows, 1] in the dtype of `x`), with x about (q - 128) * largest / 127
    """
    half, tiny = _constants(x.device)
    # One of the row's own numbers, so its dtype holds it exactly: products with it then need no wider one.
    largest = _largest(x)
    divisor = torch.maximum(largest, tiny)
    if x.numel() < _FEW:  # the fewest operations
        return torch.addcdiv(half, x, divisor, value=127.0).to(torch.uint8), largest
    # Rounded, cut to int8 and moved by 128 in three quick passes: a cast to uint8 alone takes longer than all of them.
    q = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    steps = 127.0 / divisor
    rows = max(1, _QUANTIZED_TOGETHER // x.shape[1])
    for out, part, step in zip(q.split(rows), x.split(rows), steps.split(rows), strict=True):
        out.copy_(part.to(torch.float32, copy=True).mul_(step).round_())
    return q.view(torch.uint8).bitwise_xor_(128), largest


def _largest(x: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of each row of [rows, K], [rows, 1]."""
    if x.dtype == torch.float32 or x.numel() < _FEW:
        return x.abs().amax(-1, keepdim=True)
    # Without their sign, 16 bit floats are ordered as integers are, which the processor compares faster.
    return (x.view(torch.int16) & 0x7FFF).amax(-1, keepdim=True).view(x.dtype)


class Int8Linear(QuantizedLinear):
    """W in int8, one scale an output channel."""

    stored = "weight"

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """weight int8 [N, K] in -127..127, scale [N, 1] any float dtype, bias [N] in the dtype of the inputs."""
        super().__init__(weight, scale, bias)
        self.in_features = weight.shape[1]

    @classmethod
    def from_linear(cls, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Int8Linear:
        """Quantize a float weight [N, K]."""
        return cls(*quantize_int8(weight.detach()), None if bias is None else bias.detach())

    def make_kernel(self, weight: torch.Tensor) -> Any:
        return choose_kernel(weight)(weight, self.weight_scale)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def choose_kernel(weight: torch.Tensor) -> Any:
    """The class of the fastest kernel for an int8 weight [N, K] on its device."""
    if weight.device.type == "cpu" and has_onednn():
        return OneDnnKernel
    if weight.device.type == "cuda" and not (weight.shape[0] % 8 or weight.shape[1] % 8):
        return IntMmKernel
    return FloatKernel


def has_onednn() -> bool:
    """Whether this torch multiplies 8 bit integers through oneDNN."""
    if not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")):
        return False
    # Without VNNI instructions oneDNN's 8 bit products saturate at 16 bit and are no faster.
    checks = ("_is_vnni_supported", "_is_avx512_vnni_supported", "_is_amx_tile_supported")
    return any(check() for name in checks if (check := getattr(torch.cpu, name, None)) is not None)


class OneDnnKernel:
    """oneDNN's product of unsigned rows and signed weights, on CPUs."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor) -> None:
        self.packed = torch.ops.onednn.qlinear_prepack(weight, None)
        self.scale = scale.flatten().float() / 127
        self.zeros = torch.zeros(len(weight), dtype=torch.int32)
        self.zero_point = torch.tensor(128)

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return self.multiply(*quantize_rows(x), bias, x.dtype)

    def multiply(
        self, q: torch.Tensor, largest: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        """q uint8 [rows, K], largest [rows, 1] -> [rows, N] in `dtype`."""
        if dtype == torch.float16:  # oneDNN writes bfloat16 and float32
            return self.multiply(q, largest, None if bias is None else bias.float(), torch.float32).half()
        if len(q) == 1:
            return torch.ops.onednn.qlinear_pointwise.tensor(
                *(
                    q,
                    largest.float(),
                    self.zero_point,
                    self.packed,
                    self.scale,
                    self.zeros,
                    bias,
                    1.0,
                    0,
                    dtype,
                ),
                *("none", [], ""),
            )
        if len(q) > _SLICE_ROWS and len(q) * len(self.scale) * dtype.itemsize > _SLICE_BYTES:
            out = q.new_empty(len(q), len(self.scale), dtype=dtype)
            for part, rows, sizes in zip(*(t.split(_SLICE_ROWS) for t in (out, q, largest)), strict=True):
                self._scaled(rows, sizes, bias, dtype, part)
            return out
        return self._scaled(q, largest, bias, dtype, None)

    def _scaled(
        self,
        q: torch.Tensor,
        largest: torch.Tensor,
        bias: torch.Tensor | None,
        dtype: torch.dtype,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        # oneDNN knows one scale for all rows, so theirs come in afterwards.
        product = torch.ops.onednn.qlinear_pointwise(
            q, 1.0, 128, self.packed, self.scale, self.zeros, None, 1.0, 0, dtype, "none", [], ""
        )
        out = product if out is None else out
        if bias is None:
            return torch.mul(product, largest, out=out)
        return torch.addcmul(bias, product, largest, out=out)


class IntMmKernel:
    """torch._int_mm on CUDA: more than 16 rows, and both sizes multiples of 8."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor) -> None:
        self.columns = weight.contiguous().t()
        self.scale = scale.flatten().float() / 127

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return self.multiply(*quantize_rows(x), bias, x.dtype)

    def multiply(
        self, q: torch.Tensor, largest: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
    ) -> torch.Tensor:
        """q uint8 [rows, K], largest [rows, 1] -> [rows, N] in `dtype`."""
        rows = len(q)
        signed = (q ^ 128).view(torch.int8)  # minus 128
        if rows <= 16 or rows % 8:
            signed = nn.functional.pad(signed, (0, 0, 0, max(32, -(-rows // 8) * 8) - rows))
        product = torch._int_mm(signed, self.columns)[:rows].float() * largest * self.scale
        return (product if bias is None else product + bias).to(dtype)


class FloatKernel:
    """Any device: the weight is made float again for each product; saves memory, not time."""

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor) -> None:
        self.weight, self.scale = weight, scale

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return nn.functional.linear(x, dequantize(self.weight, self.scale, x.dtype), bias)
