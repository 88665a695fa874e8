"""Attention as it is meant: products, softmax, products, in float32. Every kernel is held against it."""

from __future__ import annotations

import torch

# Scores that are held at a time.
_SCORES = 1 << 25


def reference(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keep: torch.Tensor | None,
    scale: float,
    head_first: bool,
) -> torch.Tensor:
    """softmax(scale * query key^T) value, over the keys that `keep` keeps; zeros where it keeps none.

    Args:
        query: [B, Sq, N, D]; key, value: [B, Sk, M, D], M dividing N; with `head_first` heads before tokens.
        keep: as `problem.placed_mask` gives it.

    Returns:
        A tensor like `query`, computed in float32 (float64 for float64).
    """
    wide = torch.promote_types(query.dtype, torch.float32)
    tensors = (query, key, value)
    query, key, value = (t.to(wide) if head_first else t.to(wide).transpose(1, 2) for t in tensors)
    group = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(group, dim=1) for t in (key, value))
    rows = max(1, _SCORES // max(1, query.shape[0] * query.shape[1] * key.shape[2]))
    parts = []
    for start in range(0, query.shape[2], rows):
        seen = keep[:, :, start : start + rows] if keep is not None and keep.shape[2] > 1 else keep
        parts.append(_attend(query[:, :, start : start + rows] * scale, key, value, seen))
    mixed = torch.cat(parts, dim=2) if parts else query.clone()
    return (mixed if head_first else mixed.transpose(1, 2)).to(tensors[0].dtype)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, keep: torch.Tensor | None
) -> torch.Tensor:
    """[B, N, rows, D] scaled -> [B, N, rows, D]"""
    scores = query @ key.transpose(2, 3)
    if keep is not None:
        scores = scores.masked_fill(~keep, float("-inf"))
    # A row that sees nothing is all -inf, whose softmax is nan.
    weights = scores.softmax(dim=-1)
    return (weights if keep is None else weights.masked_fill(~keep, 0)) @ value
