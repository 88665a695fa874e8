"""Attention over whole sequences, in the form that is fastest on the device; registered with transformers.

On CPUs torch's fused attention pays a fixed price for each head and sequence, and its backward pass is many times
slower than the products it consists of: at 32 sequences of 40 tokens it takes a quarter of a training step. Where
the scores are small, plain matrix products are faster and the same to rounding.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch

from sightline.hardware.operators.attention.paged import PagedAttention, Plan
from sightline.hardware.operators.attention.varlen import varlen

NAME = "sightline"
# transformers hands the ends of segments only to names that hold "flash"; others get one call for each segment.
SEGMENTS = "sightline_flash_segments"
# Over the engine's key-value cache in blocks; reached with the keyword `paged`.
PAGED = "sightline_paged"

# Scores of a layer up to this many elements (16 MiB in float32) are worth writing out.
_SMALL = 1 << 22

# Of one thread: scores of a block of queries (8 MiB in bf16), and its most rows.
_SCORES, _MOST_ROWS = 1 << 22, 1024


def register() -> str:
    """Make the implementation known to transformers and return the name to ask for."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, attention)
    AttentionInterface.register(SEGMENTS, segment_attention)
    AttentionInterface.register(PAGED, paged_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    AttentionMaskInterface.register(PAGED, _no_mask)
    return NAME


def batch_segments(visual: Any) -> None:
    """Let a vision tower attend to all windows or pictures of one length in one call."""
    register()
    visual.config._attn_implementation = SEGMENTS


@dataclass(frozen=True)
class Paged:
    """What a packed forward over the cache hands down to every attention layer."""

    attention: PagedAttention
    plan: Plan


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    paged: Paged,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a step's packed tokens to their sequences in the cache, in transformers' signature.

    Args:
        query: [1, heads, T, D]; key and value: [1, key-value heads, T, D].

    Returns:
        ([1, T, heads, D], None)
    """
    queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    layer: Any = module.layer_idx
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return paged.attention.attend(layer, queries, keys, values, paged.plan, scale)[None], None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The plan says who sees whom."""


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' signature.

    Args:
        query: [B, heads, T, D]; key and value: [B, key-value heads, S, D].
        attention_mask: None, or broadcastable to [B, heads, T, S] (True or 0 where seen).

    Returns:
        ([B, T, heads, D], None)
    """
    if _can_block(query, attention_mask, dropout, is_causal):
        return _blocks(query, key, value, scaling or query.shape[-1] ** -0.5), None
    small = query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2] <= _SMALL
    if query.device.type == "cpu" and attention_mask is None and not dropout and small and query.shape[2] > 1:
        causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
        return _products(query, key, value, scaling or query.shape[-1] ** -0.5, causal), None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=dropout,
        scaling=scaling,
        is_causal=is_causal,
        **kwargs,
    )


def segment_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    cu_seq_lens_q: torch.Tensor,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of each segment to itself, those of equal length as one batch.

    Args:
        query, key, value: [1, heads, T, D], the segments one after the other.
        cu_seq_lens_q: [segments + 1], where each begins, and T.

    Returns:
        ([1, T, heads, D], None)
    """
    if not torch.is_grad_enabled():
        queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        fused = varlen(queries, keys, values, cu_seq_lens_q, scale)
        if fused is not None:
            return fused[None], None
    ends = cu_seq_lens_q.tolist()
    starts: dict[int, list[int]] = {}
    for start, end in itertools.pairwise(ends):
        if end > start:
            starts.setdefault(end - start, []).append(start)

    def answer(index: torch.Tensor | None, length: int) -> torch.Tensor:
        parts = [tensor[0] if index is None else tensor[0, :, index] for tensor in (query, key, value)]
        one, two, three = (part.unflatten(1, (-1, length)).transpose(0, 1) for part in parts)
        mixed, _ = attention(module, one, two, three, None, scaling=scaling, is_causal=False)
        return mixed.flatten(0, 1)

    if len(starts) == 1:
        return answer(None, next(iter(starts)))[None], None
    orders = [
        (torch.tensor(firsts)[:, None] + torch.arange(length)).flatten().to(query.device)
        for length, firsts in starts.items()
    ]
    mixed = torch.cat([answer(order, length) for order, length in zip(orders, starts, strict=True)])
    return mixed[torch.cat(orders).argsort()][None], None


def _can_block(
    query: torch.Tensor, mask: torch.Tensor | None, dropout: float, is_causal: bool | None
) -> bool:
    inference = not torch.is_grad_enabled() and mask is None and not dropout
    return query.device.type == "cpu" and inference and is_causal is False and query.shape[2] > 1


def _blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """Attention of everyone to everyone, in blocks of queries whose scores stay in the caches.

    Each thread multiplies heads of its own; torch's fused kernel reaches half of this at head width 80.

    Args:
        query, key, value: [B, heads, T, D], as many heads in each.

    Returns:
        [B, T, heads, D]
    """
    batch, heads, tokens, width = query.shape
    scaled, columns = (query * scaling).flatten(0, 1), key.flatten(0, 1).transpose(-1, -2)
    seen = value.flatten(0, 1)
    output = torch.empty_like(scaled)
    rows = min(tokens, _MOST_ROWS, max(256, _SCORES // tokens))
    together = torch.get_num_threads() * max(1, _SCORES // (4 * rows * tokens))
    for first in range(0, batch * heads, together):
        group = slice(first, first + together)
        for start in range(0, tokens, rows):
            part = slice(start, start + rows)
            weights = torch.softmax(torch.bmm(scaled[group, part], columns[group]), dim=-1)
            output[group, part] = torch.bmm(weights, seen[group])
    return output.view(batch, heads, tokens, width).transpose(1, 2)


def _products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float, causal: bool
) -> torch.Tensor:
    """Plain attention; heads that share keys are stacked as more rows, so that nothing is repeated."""
    batch, heads, rows, width = query.shape
    shared, columns = key.shape[1], key.shape[2]
    stacked = (query * scaling).reshape(batch, shared, heads // shared * rows, width)
    scores = torch.matmul(stacked, key.transpose(-1, -2)).view(batch, shared, heads // shared, rows, columns)
    if causal:
        seen = torch.ones(rows, columns, dtype=torch.bool, device=query.device).tril(columns - rows)
        scores = scores.masked_fill(~seen, float("-inf"))
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    mixed = torch.matmul(weights.view(batch, shared, -1, columns), value)
    return mixed.view(batch, heads, rows, width).transpose(1, 2).contiguous()
