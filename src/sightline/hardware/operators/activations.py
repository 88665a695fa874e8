"""Activations by name, and SwiGLU."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from sightline.errors import UsageError
from sightline.hardware.operators.forms import Operator, drawn


def _gelu_fast(x: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(1.702 x), an approximation of GELU that some models were trained with."""
    return x * torch.sigmoid(1.702 * x)


_PLAIN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "mish": functional.mish,
    "gelu": functional.gelu,
    "gelu-tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "gelu-fast": _gelu_fast,
    "relu": functional.relu,
}
_OTHER_NAMES = {"swish": "silu"}


def activation(x: torch.Tensor, kind: str, fused: bool = True) -> torch.Tensor:
    """The activation `kind` of every number of `x`: silu (swish), mish, gelu, gelu-tanh, gelu-fast or relu.

    Args:
        fused: False computes the definition in plain torch on every device.

    Raises:
        UsageError: the name is unknown.
    """
    known = _known(kind)
    return (_GELU_FAST if known == "gelu-fast" else _ACTIVATION)(x, kind=known, fused=fused)


class Activation(nn.Module):
    """`activation` as a layer without weights."""

    def __init__(self, kind: str) -> None:
        """
        Raises:
            UsageError: the name is unknown.
        """
        super().__init__()
        self.kind = _known(kind)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape -> the same shape."""
        return activation(x, self.kind)

    def extra_repr(self) -> str:
        return self.kind


def get_activation_layer(act_type: str) -> nn.Module:
    """The layer of a name that `activation` takes; raises as it does."""
    return Activation(act_type)


def swiglu(x: torch.Tensor, dim: int = -1, fused: bool = True) -> torch.Tensor:
    """silu(first half) * second half of `x` along `dim`: the linear map before it holds [gate; up].

    Args:
        x: [..., 2 F, ...], F along `dim` in the result.
        fused: False computes the definition in plain torch on every device.

    Raises:
        UsageError: `dim` does not exist or its length is odd.
    """
    if not -x.dim() <= dim < x.dim() or x.shape[dim] % 2:
        raise UsageError(f"swiglu splits an even dimension, not dimension {dim} of {tuple(x.shape)}")
    return _SWIGLU(x, dim=dim if dim < 0 else dim - x.dim(), fused=fused)


def _known(kind: str) -> str:
    name = _OTHER_NAMES.get(kind, kind)
    if name not in _PLAIN:
        raise UsageError(f"activation {kind!r} is not one of {', '.join(sorted({*_PLAIN, *_OTHER_NAMES}))}")
    return name


def _plain(x: torch.Tensor, *, kind: str) -> torch.Tensor:
    return _PLAIN[kind](x)


def _npu(x: torch.Tensor, *, kind: str) -> torch.Tensor:
    """npu_gelu and npu_fast_gelu (their pages in Ascend/op-plugin); the others are single kernels of torch there.

    On the Atlas 300 family npu_fast_gelu is another formula of the same function.
    """
    torch_npu: Any = importlib.import_module("torch_npu")
    if kind in ("gelu", "gelu-tanh"):
        smooth: torch.Tensor = torch_npu.npu_gelu(x, approximate="tanh" if kind == "gelu-tanh" else "none")
        return smooth
    if kind == "gelu-fast":
        fast: torch.Tensor = torch_npu.npu_fast_gelu(x)
        return fast
    return _PLAIN[kind](x)


def _plain_swiglu(x: torch.Tensor, *, dim: int) -> torch.Tensor:
    gate, up = x.chunk(2, dim=dim)
    return functional.silu(gate) * up


def _npu_swiglu(x: torch.Tensor, *, dim: int) -> torch.Tensor:
    torch_npu: Any = importlib.import_module("torch_npu")
    mixed: torch.Tensor = torch_npu.npu_swiglu(x.contiguous(), dim)
    return mixed


def _sample(device: torch.device, dtype: torch.dtype) -> Sequence[torch.Tensor]:
    return drawn(device, dtype, (2, 2, 2, 4, 6, 8))


# torch has one kernel for each of them but gelu-fast, which is compiled into one.
_ACTIVATION = Operator("activation", _plain, _npu, _sample, compiled=False)
_GELU_FAST = Operator("activation", _plain, _npu, _sample)
_SWIGLU = Operator("swiglu", _plain_swiglu, _npu_swiglu, _sample)
