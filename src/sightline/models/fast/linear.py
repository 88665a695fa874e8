"""Linear maps in the form that the device multiplies fastest, and several of one input as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from sightline.models.quantization.linear import QuantizedLinear

Convert = Callable[[nn.Linear], nn.Module]

# oneDNN orders a weight for about so many rows of input; the order it picks serves single rows as well.
_TYPICAL_ROWS = 1024


class PackedLinear(nn.Module):
    """A bf16 linear map on a CPU with its weight in oneDNN's own order.

    torch's linear brings the weight into this order in every call: decoding then reads 25 to 30 GB/s of weights where
    this reads 42 to 48 on the same machine, and prompts gain a tenth.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """weight: bf16 [N, K]; bias: [N] or None."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        # Not buffers: an opaque tensor can neither be moved nor saved.
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _TYPICAL_ROWS)
        self._bias = None if bias is None else bias.detach()

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """[..., K] -> [..., N]"""
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            rows, self._weight, self._bias, "none", [], ""
        )
        return output


class Joined(nn.Module):
    """Several maps of one input, side by side, where they cannot be one matrix (an adapter is on them)."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.cat([part(rows) for part in self.parts], dim=-1)


def convert_linear(linear: nn.Linear) -> nn.Module:
    """The fastest form of a linear map that gives the same numbers up to rounding; itself where it is that."""
    packed = torch.backends.mkldnn.is_available() and linear.weight.device.type == "cpu"
    if packed and linear.weight.dtype == torch.bfloat16:
        return PackedLinear(linear.weight, linear.bias)
    return linear


def join(linears: Sequence[nn.Module]) -> nn.Module:
    """One map for several of the same input: its output is theirs, one after the other."""
    kind: Any = type(linears[0])
    if any(type(linear) is not kind for linear in linears):
        return Joined(linears)
    if issubclass(kind, QuantizedLinear):
        stacked: nn.Module = kind.stacked(linears)
        return stacked
    if kind is not nn.Linear:
        return Joined(linears)
    plain: Any = linears
    weight = torch.cat([linear.weight.detach() for linear in plain])
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    biases = [linear.bias for linear in plain]
    if any(bias is not None for bias in biases):
        parts = [
            torch.zeros_like(linear.weight[:, 0]) if bias is None else bias.detach()
            for linear, bias in zip(plain, biases, strict=True)
        ]
        joined.bias = nn.Parameter(torch.cat(parts), requires_grad=False)
    return joined


def converted(linear: nn.Module, convert: Convert) -> nn.Module:
    """`convert` on a plain linear map; a quantized one laid out for its device; anything else as it is."""
    if isinstance(linear, QuantizedLinear):
        return linear.prepare()
    return convert(linear) if type(linear) is nn.Linear else linear


def direct(linear: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """What computes rows [T, K] without torch's checks for hooks, which cost as much as a small product.

    Our own maps only: others may have hooks.
    """
    if isinstance(linear, QuantizedLinear):
        kernel, bias = linear.prepare().kernel, linear.bias
        return lambda rows: kernel(rows, bias)
    return linear.forward if isinstance(linear, PackedLinear) else linear
