"""Attention by libraries that may be installed on CUDA: flash-attn 2 and 3, and SageAttention, which is not exact."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from sightline.hardware.operators.dense_attention.forms import Form
from sightline.hardware.operators.dense_attention.problem import Problem

_HALF = ("bf16", "fp16")


def _flash(module: str) -> Callable[..., torch.Tensor]:
    def kernel(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        keep: torch.Tensor | None,
        scale: float,
        problem: Problem,
    ) -> torch.Tensor:
        library: Any = importlib.import_module(module)
        mixed = library.flash_attn_func(query, key, value, softmax_scale=scale, causal=False)
        # Some versions of flash-attn 3 return the logarithms of the sums too.
        result: torch.Tensor = mixed[0] if isinstance(mixed, tuple) else mixed
        return result

    return kernel


def _sage(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keep: torch.Tensor | None,
    scale: float,
    problem: Problem,
) -> torch.Tensor:
    library: Any = importlib.import_module("sageattention")
    mixed: torch.Tensor = library.sageattn(
        query, key, value, tensor_layout="NHD", is_causal=False, sm_scale=scale
    )
    return mixed


def _refusal(module: str, head_dims: tuple[int, ...] | range) -> Callable[[Problem], str | None]:
    def why_not(problem: Problem) -> str | None:
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
        if problem.dtype not in _HALF:
            return f"it computes in bf16 and fp16, not {problem.dtype}"
        if problem.mask:
            return "it takes no mask"
        if problem.head_dim not in head_dims:
            return f"it does not take a head size of {problem.head_dim}"
        return None

    return why_not


FORMS = [
    Form(
        "flash_attn_3",
        "BSND",
        _flash("flash_attn_interface"),
        _refusal("flash_attn_interface", range(8, 257, 8)),
    ),
    Form("flash_attn", "BSND", _flash("flash_attn"), _refusal("flash_attn", range(8, 257, 8))),
    # It quantizes queries and keys to int8, the values to fp16 or fp8.
    Form("sage", "BSND", _sage, _refusal("sageattention", (64, 96, 128)), exact=False, differentiable=False),
]
