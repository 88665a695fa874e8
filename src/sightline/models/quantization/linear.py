"""What quantized linear layers of every width share: their buffers, joining them, and when they are laid out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

Layer = TypeVar("Layer", bound="QuantizedLinear")


class QuantizedLinear(nn.Module):
    """y = x W^T + b with W in few bits.

    The first call (or `prepare`) lays the weight out for the device it is on and drops the plain copy; move the
    module before that. No parameter, only buffers: there is nothing to train.
    """

    #: The buffer that holds the plain weight, named as on disk.
    stored: ClassVar[str]

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.weight_scale: torch.Tensor
        self.bias: torch.Tensor | None
        self.register_buffer(self.stored, weight)
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", bias)
        self.kernel: Any = None
        self.out_features = weight.shape[0]
        self.in_features: int

    @classmethod
    def stacked(cls: type[Layer], layers: Sequence[Layer]) -> Layer:
        """Layers of one input as one layer whose output is theirs side by side; none may be prepared yet."""
        biases = [layer.bias for layer in layers if layer.bias is not None]
        if len(biases) not in (0, len(layers)):
            raise ValueError("either all layers that are stacked have a bias or none")
        return cls(
            torch.cat([layer.plain_weight() for layer in layers]),
            torch.cat([layer.weight_scale for layer in layers]),
            torch.cat(biases) if biases else None,
        )

    def plain_weight(self) -> torch.Tensor:
        """The weight as it is stored, before it is laid out for a device."""
        weight: torch.Tensor | None = getattr(self, self.stored)
        if weight is None:
            raise RuntimeError("the weight is laid out for its device already")
        return weight

    def prepare(self: Layer) -> Layer:
        """Lay the weight out for the device it is on; done once."""
        if self.kernel is None:
            self.kernel = self.make_kernel(self.plain_weight())
            setattr(self, self.stored, None)
        return self

    def make_kernel(self, weight: torch.Tensor) -> Any:
        """What computes rows [rows, K] and a bias on the weight's device."""
        raise NotImplementedError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., K] -> [..., N], in the dtype of `x`."""
        if self.kernel is None:
            self.prepare()
        if x.dim() == 2:
            return self.kernel(x, self.bias)
        return self.kernel(x.reshape(-1, self.in_features), self.bias).view(*x.shape[:-1], self.out_features)
