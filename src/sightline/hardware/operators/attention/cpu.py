"""Paged attention on a CPU, without copying the cache.

A head's keys and values lie one after the other, so neighbouring blocks of a sequence are one matrix. The block pool
hands out neighbours where it can; a sequence then is one run, and a few runs where blocks are shared or memory is
short. Each run is read in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from sightline.hardware.operators.attention.paged import (
    PagedAttention,
    Piece,
    Plan,
    device_of_each,
    packed_slots,
    runs,
)

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

# Below so many tokens of context torch's fused attention is as fast as two matrix products, and keeps its scores
# in float32; above, it reads the cache at half their rate (measured with 2 to 4 key-value heads of 64 to 128).
_FUSED_BELOW = 512

Run = tuple[int, int]  # first slot and number of tokens


@dataclass
class CpuPlan(Plan):
    """Adds the runs of each piece: of all that a decoding token sees, and of a chunk's context."""

    runs: list[list[Run]] = field(default_factory=list)


class CpuAttention(PagedAttention):
    """Cache of each layer: keys and values [kv_heads, slots, head_dim]."""

    preferred_block_size = 32

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
        return CpuPlan(
            pieces=pieces,
            tokens=sum(piece.length for piece in pieces),
            arrays={"slots": packed_slots(pieces, self.block_size)},
            runs=[
                runs(piece.table, piece.end if piece.length == 1 else piece.context, self.block_size)
                for piece in pieces
            ],
        )

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
        start = 0
        for piece, pieces_runs in zip(plan.pieces, plan.runs, strict=True):
            end = start + piece.length
            if piece.length == 1:
                _decode(query[start], keys, values, pieces_runs, scale, output[start])
            else:
                part = slice(start, end)
                context = [(keys[:, at : at + n], values[:, at : at + n]) for at, n in pieces_runs]
                output[part] = _chunk(query[part], key[part], value[part], context, scale)
            start = end
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
    if sum(count for _, count in parts) < _FUSED_BELOW:
        # So little is sooner copied than read run by run.
        seen = (_joined(keys, parts)[None], _joined(values, parts)[None])
        output.copy_(_flash(shared[None], *seen, scale=scale)[0].view_as(output))
        return
    columns = (shared * scale).transpose(1, 2)
    # Keys times queries, not queries times keys: the long matrix is then read as it lies.
    scores = [torch.bmm(keys[:, first : first + count], columns) for first, count in parts]
    joined = scores[0] if len(scores) == 1 else torch.cat(scores, dim=1)
    weights = torch.softmax(joined.transpose(1, 2).contiguous(), dim=-1)
    mixed, start = None, 0
    for first, count in parts:
        share = weights[:, :, start : start + count]
        seen_values = values[:, first : first + count]
        mixed = torch.bmm(share, seen_values) if mixed is None else mixed.baddbmm_(share, seen_values)
        start += count
    assert mixed is not None
    output.copy_(mixed.view_as(output))


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
    """A chunk of a prompt: causal among its own tokens, everything of the context; joined by their normalisers.

    Args:
        query: [T, heads, D]; key and value: [T, kv_heads, D].
        context: keys and values [kv_heads, tokens, D] of each run.

    Returns:
        [T, heads, D]
    """
    tokens, heads, width = query.shape
    groups = heads // key.shape[1]
    own_keys, own_values = (t.transpose(0, 1).repeat_interleave(groups, dim=0)[None] for t in (key, value))
    own, normaliser = _flash(query.transpose(0, 1)[None], own_keys, own_values, is_causal=True, scale=scale)
    if not context:
        return own[0].transpose(0, 1)
    # Without a mask, the heads that share keys may be rows of one matrix: nothing is repeated.
    rows = query.view(tokens, -1, groups, width).permute(1, 2, 0, 3).reshape(1, -1, groups * tokens, width)
    outputs, normalisers = [own[0].float()], [normaliser[0]]
    for run_keys, run_values in context:
        mixed, normaliser = _flash(rows, run_keys[None], run_values[None], scale=scale)
        outputs.append(mixed[0].reshape(heads, tokens, width).float())
        normalisers.append(normaliser[0].reshape(heads, tokens))
    shares = torch.stack(normalisers).softmax(0)
    joined = sum(part * share[..., None] for part, share in zip(outputs, shares, strict=True))
    assert isinstance(joined, torch.Tensor)
    return joined.transpose(0, 1).to(query.dtype)
