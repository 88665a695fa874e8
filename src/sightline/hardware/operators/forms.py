"""One function, several forms: its definition in plain torch, torch_npu's fused operator, and torch.compile's on CUDA.

A device's form is tried on small tensors before it is used for the first time; where it fails or disagrees with the
definition, the definition is used and a warning says so. Nothing is ever exchanged for a different function.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch

from sightline.hardware.operators.attention.trial import agrees

log = logging.getLogger("sightline.hardware")

Form = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Operator:
    """A function of tensors (given by position) and of options that can be hashed (given by name).

    Attributes:
        plain: the definition.
        npu: the same by torch_npu.
        sample: small tensors of a device and a dtype, as many as a call has. On these, in the dtypes of the call and
            without those that it leaves out, a form is tried with the options of the call.
        compiled: whether torch.compile may fuse the definition on CUDA; no where torch has one kernel for it.
    """

    name: str
    plain: Form
    npu: Form
    sample: Callable[[torch.device, torch.dtype], Sequence[torch.Tensor]]
    compiled: bool = True

    def __call__(self, *tensors: Any, fused: bool = True, **options: Any) -> torch.Tensor:
        first: torch.Tensor = tensors[0]
        # Inside a compiled model the definition is fused with what stands around it.
        if not fused or torch.compiler.is_compiling() or kind_of(first) not in ("cuda", "npu"):
            return self.plain(*tensors, **options)
        dtypes = tuple(None if tensor is None else tensor.dtype for tensor in tensors)
        form = _chosen(self, kind_of(first), first.device, dtypes, tuple(sorted(options.items())))
        return form(*tensors, **options)


def kind_of(tensor: torch.Tensor) -> str:
    """cpu, cuda, npu ..."""
    return tensor.device.type


@functools.lru_cache(maxsize=256)
def _chosen(
    operator: Operator,
    kind: str,
    device: torch.device,
    dtypes: tuple[torch.dtype | None, ...],
    options: tuple[tuple[str, Any], ...],
) -> Form:
    if kind == "cuda" and not operator.compiled:
        return operator.plain
    form = _compiled(operator.plain) if kind == "cuda" else operator.npu
    dtype = dtypes[0] or torch.float32
    sample = operator.sample(device, dtype)
    tensors = [None if of is None else tensor.to(of) for tensor, of in zip(sample, dtypes, strict=True)]
    named = dict(options)
    with torch.no_grad():
        expected = operator.plain(*tensors, **named)
        name = f"{operator.name} by {'torch.compile' if kind == 'cuda' else 'torch_npu'} in {dtype}"
        if agrees(name, lambda: form(*tensors, **named), expected):
            return form
    log.warning("%s on %s runs unfused: its fused form failed its trial", operator.name, device)
    return operator.plain


def _compiled(plain: Any) -> Form:
    """The definition fused by torch.compile, under a code object of its own.

    torch counts recompilations by code object and gives up after a few; here every dtype and set of options has its
    own count.
    """
    own = FunctionType(plain.__code__.replace(), plain.__globals__, plain.__name__, None, plain.__closure__)
    compiled: Form = torch.compile(own, dynamic=True)
    return compiled


def drawn(device: torch.device, dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    """Normal random tensors, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
