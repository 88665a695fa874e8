"""Attention by torch alone: scaled_dot_product_attention with each of its back ends, and a form for CPUs."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from sightline.hardware.operators.dense_attention.forms import Form
from sightline.hardware.operators.dense_attention.problem import Problem

# Scores of one head in one part of the queries: longer parts leave the caches, shorter ones are small products.
_SCORES = 1 << 19
_LEAST_ROWS = 64

_CUDA_ORDER = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def _sdpa(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keep: torch.Tensor | None,
    scale: float,
    problem: Problem,
) -> torch.Tensor:
    shared = {"enable_gqa": True} if problem.kv_heads != problem.heads else {}
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=keep, scale=scale, **shared)


def _sdpa_copied(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keep: torch.Tensor | None,
    scale: float,
    problem: Problem,
) -> torch.Tensor:
    return _sdpa(query.contiguous(), key.contiguous(), value.contiguous(), keep, scale, problem)


def _sdpa_by(
    backend: SDPBackend,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keep: torch.Tensor | None,
    scale: float,
    problem: Problem,
) -> torch.Tensor:
    """One back end or an error: sdpa_kernel allows nothing else."""
    with sdpa_kernel(backend):
        return _sdpa(query, key, value, keep, scale, problem)


def _sdpa_in_order(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keep: torch.Tensor | None,
    scale: float,
    problem: Problem,
) -> torch.Tensor:
    """The first of the back ends that takes the call; without set_priority the list would be a set."""
    with sdpa_kernel(_CUDA_ORDER, set_priority=True):
        return _sdpa(query, key, value, keep, scale, problem)


def _chunked(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keep: torch.Tensor | None,
    scale: float,
    problem: Problem,
) -> torch.Tensor:
    """Whole matrix products over parts of the queries: CPUs with matrix units multiply bf16 so at full rate."""
    batch, heads, queries, width = query.shape
    group = heads // problem.kv_heads
    # [B * M, D, Sk] and [B * M, Sk, D]; the query heads that share keys are rows of one matrix.
    keys = key.reshape(batch * problem.kv_heads, -1, width).transpose(1, 2)
    values = value.reshape(batch * problem.kv_heads, -1, width)
    scaled = (query * scale).reshape(batch * problem.kv_heads, group, queries, width)
    rows = max(_LEAST_ROWS, _SCORES // (group * problem.keys))
    parts = []
    for start in range(0, queries, rows):
        part = scaled[:, :, start : start + rows]
        scores = torch.bmm(part.flatten(1, 2), keys)
        if keep is not None:
            seen = keep[:, :, start : start + rows] if keep.shape[2] > 1 else keep
            shaped = scores.view(batch, heads, -1, problem.keys)
            scores = shaped.masked_fill(~seen, float("-inf")).view(scores.shape)
        parts.append(torch.bmm(scores.softmax(dim=-1), values).unflatten(1, (group, -1)))
    return torch.cat(parts, dim=2).view(batch, heads, queries, width)


def _grouped(problem: Problem) -> str | None:
    return "its heads must not share keys" if problem.heads != problem.kv_heads else None


ON_ANY = [Form("sdpa", "BNSD", _sdpa)]
ON_CPU = [Form("sdpa_copied", "BNSD", _sdpa_copied), Form("chunked", "BNSD", _chunked)]
ON_CUDA = [
    Form("sdpa", "BNSD", _sdpa_in_order),
    Form("sdpa_cudnn", "BNSD", partial(_sdpa_by, SDPBackend.CUDNN_ATTENTION)),
    Form("sdpa_flash", "BNSD", partial(_sdpa_by, SDPBackend.FLASH_ATTENTION)),
    Form("sdpa_efficient", "BNSD", partial(_sdpa_by, SDPBackend.EFFICIENT_ATTENTION), _grouped),
    Form("sdpa_math", "BNSD", partial(_sdpa_by, SDPBackend.MATH)),
]
