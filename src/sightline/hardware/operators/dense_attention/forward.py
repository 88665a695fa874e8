"""Attention over whole tensors, by the kernel that is fastest for the call."""

from __future__ import annotations

import os

import torch

from sightline.errors import UsageError
from sightline.hardware.operators.dense_attention import choice
from sightline.hardware.operators.dense_attention.forms import Form
from sightline.hardware.operators.dense_attention.measure import run
from sightline.hardware.operators.dense_attention.problem import Problem, placed_mask
from sightline.hardware.operators.forms import kind_of

MODES = ("runtime", "static", "manual")
# What "manual" takes when no op_type is given.
_USUAL = {"npu": "fused_attn_score"}


def attention_forward(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
    fused: bool = True,
    head_first: bool = False,
    *,
    opt_mode: str = "runtime",
    op_type: str | None = None,
    layout: str | None = None,
    approximate: bool = False,
) -> torch.Tensor:
    """softmax(scale * query key^T) value.

    Args:
        query: [B, Sq, N, D], or [B, N, Sq, D] with `head_first`.
        key, value: [B, Sk, M, D] or [B, M, Sk, D]; M divides N, and neighbouring query heads share keys.
        attn_mask: bool or integers, True or 1 = keep: [Sq, Sk], [B, Sq, Sk] or [B, N, Sq, Sk], with 1 for what is
            the same for all. A query that keeps no key gets zeros.
        scale: D ** -0.5 when None.
        fused: False computes the definition in float32 by plain torch; the options below then mean nothing.
        opt_mode: "runtime" takes the fastest of all kernels that agree with the definition, measured at the first
            call of this shape, dtype and kind of mask on this device and kept on disk (SIGHTLINE_CACHE); "static"
            takes the usual one of the device without measuring; "manual" takes `op_type`.
        op_type: with "manual", a kernel by name, as `sightline video tune` lists them, or "reference".
        layout: with "manual", the layout that the kernel gets its tensors in (BNSD, BSND, BSH); the first it takes.
        approximate: with "runtime", let kernels in that compute in fewer bits than the tensors have.

    Returns:
        A tensor like `query`.

    Raises:
        UsageError: shapes, mask or options do not fit, or the named kernel does not take this call.
    """
    keep = None if attn_mask is None else placed_mask_of(attn_mask, query, key, head_first)
    problem = Problem.of(query, key, value, keep, head_first)
    factor = problem.head_dim**-0.5 if scale is None else float(scale)
    if keep is not None and keep.shape[3] != problem.keys:
        keep = keep.expand(-1, -1, -1, problem.keys)
    if problem.keys == 0 or query.numel() == 0:
        return torch.zeros_like(query)
    form = _form(problem, query, fused, opt_mode, op_type, layout, approximate)
    return run(form, (query, key, value), keep, factor, problem)


def placed_mask_of(
    mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor, head_first: bool
) -> torch.Tensor:
    """`placed_mask`, after a look at what it reads the sizes from."""
    if query.dim() != 4 or key.dim() != 4:
        Problem.of(query, key, key, None, head_first)  # raises
    return placed_mask(mask, query, key, head_first)


def _form(
    problem: Problem,
    query: torch.Tensor,
    fused: bool,
    opt_mode: str,
    op_type: str | None,
    layout: str | None,
    approximate: bool,
) -> Form:
    if opt_mode not in MODES:
        raise UsageError(f"opt_mode {opt_mode!r} is not one of {', '.join(MODES)}")
    if opt_mode != "manual" and (op_type is not None or layout is not None):
        raise UsageError(f"op_type and layout are for opt_mode 'manual', not {opt_mode!r}")
    if not fused or os.environ.get("SIGHTLINE_ATTENTION") == "reference":
        return choice.REFERENCE
    kind = kind_of(query)
    if opt_mode == "manual":
        return choice.by_name(op_type or _USUAL.get(kind, "sdpa"), layout, problem, kind)
    if opt_mode == "static":
        return choice.by_table(problem, kind)
    return choice.by_measurement(problem, query.device, kind, approximate)
