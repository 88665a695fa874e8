"""Paged attention on a CPU: what is short is copied together, what is long is read where it lies.

A head's keys and values lie one after the other, so neighbouring blocks of a sequence are one matrix. The block pool
hands out neighbours where it can; a sequence then is one run, and a few runs where blocks are shared or memory is
short. A prompt's chunks and a sequence that decodes alone read each run in place (a few short ones are joined first).
Several that decode are two products over a copy of their keys and values: an operator's fixed price for each sequence
is more than the copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sightline.hardware.operators.attention.cpu_plan import CpuPlan, Group, Run, make_plan
from sightline.hardware.operators.attention.paged import PagedAttention, Piece, device_of_each

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

# Below so many tokens of context torch's fused attention is as fast as two matrix products, and keeps its scores
# in float32; above, it reads the cache at half their rate (measured with 2 to 4 key-value heads of 64 to 128).
_FUSED_BELOW = 512

# So little is sooner copied into one run than read run by run.
_COPIED_BELOW = 2048

# Bytes of keys, or of values, that are copied together: what outgrows the caches is sooner read in place (measured
# with 2 to 4 key-value heads and 900 to 4,096 tokens).
_MOST_COPIED = 4 << 20

# Scores of a chunk that are held at a time (8 MiB in bf16).
_SCORES = 1 << 22
_LEAST_ROWS = 64

# Up to so many rows of queries the keys are the matrix that costs.
_FEW_ROWS = 48


class CpuAttention(PagedAttention):
    """Cache of each layer: keys and values [kv_heads, slots, head_dim]."""

    preferred_block_size = 16

    def allocate(
        self,
        *,
        layers: int,
        blocks: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | Sequence[torch.device],
    ) -> None:
        self.blocks = blocks
        shape = (kv_heads, blocks * self.block_size, head_dim)
        # Pages that no token is written to take no memory.
        devices = device_of_each(device, layers)
        self._keys = [torch.empty(shape, dtype=dtype, device=each) for each in devices]
        self._values = [torch.empty(shape, dtype=dtype, device=each) for each in devices]

    def plan(self, pieces: list[Piece]) -> CpuPlan:
        self.check(pieces)
        token = self._keys[0][:, 0]
        return make_plan(pieces, self.block_size, _MOST_COPIED // (token.numel() * token.element_size()))

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        plan: CpuPlan,
        scale: float,
    ) -> torch.Tensor:
        keys, values = self._keys[layer], self._values[layer]
        slots = plan.on(keys.device)["slots"]
        keys.index_copy_(1, slots, key.transpose(0, 1))
        values.index_copy_(1, slots, value.transpose(0, 1))
        output = torch.empty_like(query)
        for group in plan.groups:
            output[group.index] = _together(query[group.index], keys, values, group, scale)
        for row, parts in plan.alone:
            _decode(query[row], keys, values, parts, scale, output[row])
        for part, seen in plan.chunks:
            context = [(keys[:, at : at + n], values[:, at : at + n]) for at, n in seen]
            output[part] = _chunk(query[part], key[part], value[part], context, scale)
        return output


def _decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    parts: list[Run],
    scale: float,
    output: torch.Tensor,
) -> None:
    """One token. query and output [heads, head_dim]; heads that share keys are rows of one product."""
    shared = query.view(keys.shape[0], -1, query.shape[-1])
    tokens = sum(count for _, count in parts)
    if len(parts) > 1 and tokens > _COPIED_BELOW:
        places = [slice(first, first + count) for first, count in parts]
        mixed = _products(shared * scale, [keys[:, at] for at in places], [values[:, at] for at in places])
    else:
        seen_keys, seen_values = _joined(keys, parts), _joined(values, parts)
        if tokens < _FUSED_BELOW:
            mixed = _flash(shared[None], seen_keys[None], seen_values[None], scale=scale)[0]
        else:
            mixed = _products(shared * scale, [seen_keys], [seen_values])
    output.copy_(mixed.view_as(output))


def _together(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, group: Group, scale: float
) -> torch.Tensor:
    """A token of each sequence of a group: [sequences, heads, head_dim] -> the same.

    Scores are rounded to the tensors' dtype, as in `_products`; the fused attention that keeps them in float32 takes a
    quarter longer for sixteen sequences and more for long ones.
    """
    heads, slots, width = keys.shape
    places = group.places(heads, slots)
    seen_keys, seen_values = (
        cache.view(-1, width).index_select(0, places).view(len(query), heads, -1, width)
        for cache in (keys, values)
    )
    scores = torch.matmul((query * scale).view(len(query), heads, -1, width), seen_keys.transpose(2, 3))
    if group.unseen is not None:
        scores.masked_fill_(group.unseen, -torch.inf)
    return torch.matmul(torch.softmax(scores, dim=-1), seen_values).view_as(query)


def _products(query: torch.Tensor, keys: list[torch.Tensor], values: list[torch.Tensor]) -> torch.Tensor:
    """Attention of rows to all of `keys`, run by run.

    Args:
        query: [B, rows, D], scaled; keys, values: of each run [B, tokens, D].

    Returns:
        [B, rows, D]
    """
    scores = [_scores(query, part) for part in keys]
    weights = torch.softmax(scores[0] if len(scores) == 1 else torch.cat(scores, dim=2), dim=-1)
    return _weighted(weights, values)


def _joined(cache: torch.Tensor, parts: list[Run]) -> torch.Tensor:
    """[kv_heads, tokens, head_dim]; a single run as it lies."""
    seen = [cache[:, first : first + count] for first, count in parts]
    return seen[0] if len(seen) == 1 else torch.cat(seen, dim=1)


def _chunk(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    context: list[tuple[torch.Tensor, torch.Tensor]],
    scale: float,
) -> torch.Tensor:
    """A chunk of a prompt: causal among its own tokens, everything of the context.

    Args:
        query: [T, heads, D]; key and value: [T, kv_heads, D].
        context: keys and values [kv_heads, tokens, D] of each run.

    Returns:
        [T, heads, D]
    """
    tokens, heads, width = query.shape
    shared = key.shape[1]
    # The heads that share keys are rows of one matrix: nothing is repeated.
    grouped = (query * scale).view(tokens, shared, -1, width).permute(1, 2, 0, 3)
    own_keys, own_values = key.transpose(0, 1), value.transpose(0, 1)
    output = torch.empty(shared, heads // shared, tokens, width, dtype=query.dtype, device=query.device)
    columns = tokens + sum(part[0].shape[1] for part in context)
    rows = min(tokens, max(_LEAST_ROWS, _SCORES // (heads * columns)))
    for start in range(0, tokens, rows):
        end = min(tokens, start + rows)
        part = grouped[:, :, start:end].reshape(shared, -1, width)
        seen = [*context, (own_keys[:, :end], own_values[:, :end])]
        scores = [_scores(part, keys) for keys, _ in seen]
        later = torch.ones(end - start, end, dtype=torch.bool, device=query.device).triu_(start + 1)
        scores[-1].view(shared, -1, end - start, end).masked_fill_(later, -torch.inf)
        weights = torch.softmax(scores[0] if len(scores) == 1 else torch.cat(scores, dim=2), dim=-1)
        output[:, :, start:end] = _weighted(weights, [values for _, values in seen]).view(
            shared, -1, end - start, width
        )
    return output.permute(2, 0, 1, 3).reshape(tokens, heads, width)


def _scores(query: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """[B, rows, D] and [B, tokens, D] -> [B, rows, tokens]"""
    if query.shape[1] > _FEW_ROWS:
        return torch.bmm(query, keys.transpose(1, 2))
    # Keys times queries: the long matrix is then read as it lies.
    return torch.bmm(keys, query.transpose(1, 2)).transpose(1, 2).contiguous()


def _weighted(weights: torch.Tensor, values: list[torch.Tensor]) -> torch.Tensor:
    """[B, rows, tokens of all runs] times the values of each run [B, tokens, D] -> [B, rows, D]"""
    if len(values) == 1:
        return torch.bmm(weights, values[0])
    mixed: torch.Tensor | None = None
    start = 0
    for part in values:
        share = weights[:, :, start : start + part.shape[1]]
        mixed = torch.bmm(share, part) if mixed is None else mixed.baddbmm_(share, part)
        start += part.shape[1]
    assert mixed is not None
    return mixed
