"""Attention by torch_npu's fused operators, each in the layouts that it takes.

Limits are those of their pages in Ascend/op-plugin (docs/context/torch_npu-npu_prompt_flash_attention.md,
torch_npu-npu_fusion_attention.md, torch_npu-npu_fused_infer_attention_score.md; Atlas A2 and A3). All three want a
mask in which 1 is masked out, in full over queries and keys, and contiguous tensors.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from sightline.hardware.operators.dense_attention.forms import Form, Kernel
from sightline.hardware.operators.dense_attention.problem import Problem

# The default of the window's sides differs between the operators (0 in one of them); this is all tokens.
_ALL_TOKENS = 2**31 - 1
_LAYOUTS = ("BNSD", "BSND", "BSH")


def _masked_out(keep: torch.Tensor | None, problem: Problem) -> torch.Tensor | None:
    """[B|1, N|1, Sq, Sk], True where there is nothing to see."""
    if keep is None:
        return None
    return (~keep).expand(-1, -1, problem.queries, problem.keys).contiguous()


def _prompt(
    layout: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keep: torch.Tensor | None,
    scale: float,
    problem: Problem,
) -> torch.Tensor:
    torch_npu: Any = importlib.import_module("torch_npu")
    mixed: torch.Tensor = torch_npu.npu_prompt_flash_attention(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        atten_mask=_masked_out(keep, problem),
        num_heads=problem.heads,
        num_key_value_heads=problem.kv_heads,
        scale_value=scale,
        pre_tokens=_ALL_TOKENS,
        next_tokens=_ALL_TOKENS,
        input_layout=layout,
    )
    return mixed


def _fusion(
    layout: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keep: torch.Tensor | None,
    scale: float,
    problem: Problem,
) -> torch.Tensor:
    torch_npu: Any = importlib.import_module("torch_npu")
    mixed: torch.Tensor = torch_npu.npu_fusion_attention(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        problem.heads,
        layout,
        atten_mask=_masked_out(keep, problem),
        scale=scale,
        keep_prob=1.0,
        pre_tockens=_ALL_TOKENS,
        next_tockens=_ALL_TOKENS,
    )[0]
    return mixed


def _infer(
    layout: str,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keep: torch.Tensor | None,
    scale: float,
    problem: Problem,
) -> torch.Tensor:
    torch_npu: Any = importlib.import_module("torch_npu")
    mixed: torch.Tensor = torch_npu.npu_fused_infer_attention_score(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        atten_mask=_masked_out(keep, problem),
        num_heads=problem.heads,
        num_key_value_heads=problem.kv_heads,
        scale=scale,
        pre_tokens=_ALL_TOKENS,
        next_tokens=_ALL_TOKENS,
        input_layout=layout,
    )[0]
    return mixed


def _inference_limits(layout: str, problem: Problem) -> str | None:
    if problem.dtype not in ("bf16", "fp16"):
        return f"it computes in bf16 and fp16, not {problem.dtype}"
    if problem.head_dim % 16 or problem.head_dim > 512:
        return f"its head size is a multiple of 16 up to 512, not {problem.head_dim}"
    if problem.heads > 256 or problem.heads // problem.kv_heads > 64:
        return "it takes at most 256 heads, and 64 that share a key head"
    if layout != "BNSD" and problem.heads * problem.head_dim >= 65535:
        return f"heads times head size must be below 65535 in {layout}"
    return "its mask is the same for all heads" if "n" in problem.mask else None


def _more_queries(layout: str, problem: Problem) -> str | None:
    # A single query takes the incremental path of this operator, with other rules for the mask.
    return _inference_limits(layout, problem) or (
        "it needs more than one query" if problem.queries == 1 else None
    )


def _training_limits(layout: str, problem: Problem) -> str | None:
    if problem.dtype not in ("bf16", "fp16", "fp32"):
        return f"it computes in bf16, fp16 and fp32, not {problem.dtype}"
    if problem.head_dim > 768:
        return f"its head size is at most 768, not {problem.head_dim}"
    if problem.heads > 256:
        return f"it takes at most 256 heads, not {problem.heads}"
    # Masks are given as [B, N, Sq, Sk], [B, 1, Sq, Sk] or [1, 1, Sq, Sk].
    with_heads = "n" in problem.mask and problem.batch > 1 and "b" not in problem.mask
    return "a mask of heads must be one of samples too" if with_heads else None


def _in_layouts(
    name: str,
    kernel: Callable[..., torch.Tensor],
    limits: Callable[[str, Problem], str | None],
    gradient: bool,
) -> list[Form]:
    def of(layout: str) -> Form:
        made: Kernel = partial(kernel, layout)
        return Form(name, layout, made, partial(limits, layout), differentiable=gradient)

    return [of(layout) for layout in _LAYOUTS]


FORMS = [
    *_in_layouts("prompt_flash_attn", _prompt, _inference_limits, gradient=False),
    # Its page calls it one for training; eager inference is a forward alone.
    *_in_layouts("fused_attn_score", _fusion, _training_limits, gradient=True),
    *_in_layouts("fused_infer_attn_score", _infer, _more_queries, gradient=False),
]
