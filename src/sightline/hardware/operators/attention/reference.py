"""Paged attention as it is meant: gather, multiply, softmax, in float32 on any device. Others are tested against it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sightline.hardware.operators.attention.paged import (
    PagedAttention,
    Piece,
    Plan,
    device_of_each,
    packed_slots,
    slots,
)


class ReferenceAttention(PagedAttention):
    """One [blocks * block_size, kv_heads, head_dim] tensor for the keys of each layer, one for its values."""

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
        shape = (blocks * self.block_size, kv_heads, head_dim)
        devices = device_of_each(device, layers)
        self.keys = [torch.zeros(shape, dtype=dtype, device=each) for each in devices]
        self.values = [torch.zeros(shape, dtype=dtype, device=each) for each in devices]
        self.blocks = blocks

    def plan(self, pieces: list[Piece]) -> Plan:
        self.check(pieces)
        arrays = {"slots": packed_slots(pieces, self.block_size)}
        return Plan(pieces, sum(piece.length for piece in pieces), arrays)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        plan: Plan,
        scale: float,
    ) -> torch.Tensor:
        keys, values = self.keys[layer], self.values[layer]
        new = plan.on(keys.device)["slots"]
        keys[new] = key.to(keys.dtype)
        values[new] = value.to(values.dtype)
        parts = query.split([piece.length for piece in plan.pieces])
        mixed = [
            self._attend_piece(part, keys, values, piece, scale)
            for part, piece in zip(parts, plan.pieces, strict=True)
        ]
        return torch.cat(mixed)

    def _attend_piece(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, piece: Piece, scale: float
    ) -> torch.Tensor:
        seen = torch.from_numpy(slots(Piece(piece.end, 0, piece.table), self.block_size)).to(keys.device)
        group = query.shape[1] // keys.shape[1]
        key = keys[seen].float().repeat_interleave(group, dim=1)  # [end, heads, head_dim]
        value = values[seen].float().repeat_interleave(group, dim=1)
        scores = torch.einsum("qhd,khd->hqk", query.float() * scale, key)
        future = torch.ones(piece.length, piece.end, dtype=torch.bool, device=keys.device).triu(
            piece.context + 1
        )
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, value).to(query.dtype)
