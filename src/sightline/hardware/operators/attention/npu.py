"""Paged attention on Ascend NPUs, by torch_npu's fused operators as their pages in Ascend/op-plugin document them.

What decides the form (docs/context/torch_npu-npu_fused_infer_attention_score.md):
* Packed segments (TND) with a block table are documented only for MLA's head sizes, so a call takes a batch of pieces
  of one length (BSH): all decodes are one call, and a prompt's chunk usually another.
* With BSH the cache must lie as [blocks, block_size, kv_heads * head_dim]; `npu_scatter_pa_kv_cache` writes the same
  memory as [blocks, block_size, kv_heads, head_dim].
* Blocks hold 128 to 512 tokens in steps of 128 (prompts; decodes would take multiples of 16).
* The cache must have at least as many blocks as all pieces of a call together, shared ones counted for each.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from sightline.errors import SightlineError
from sightline.hardware.operators.attention.paged import (
    PagedAttention,
    Piece,
    Plan,
    device_of_each,
    packed_slots,
    padded_tables,
    used_blocks,
)
from sightline.hardware.operators.attention.trial import agrees

# The mask of sparse mode 3 has this size whatever the lengths are.
_MASK = 2048
# Elements that an operator can address in the keys of one layer.
_ADDRESSABLE = 2**31 - 1

Write = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True)
class Call:
    """One call of the fused operator: `batch` neighbouring pieces of `length` tokens."""

    table: str  # the name of its block tables among the plan's arrays
    start: int  # the first of its tokens in the step
    batch: int
    length: int
    ends: list[int]  # tokens in the cache of each piece, its own included


@dataclass
class NpuPlan(Plan):
    calls: list[Call] = field(default_factory=list)


class NpuAttention(PagedAttention):
    """One [blocks, block_size, kv_heads, head_dim] tensor for the keys of each layer, one for its values."""

    preferred_block_size = 128

    @classmethod
    def accepts_block_size(cls, block_size: int) -> bool:
        return block_size % 128 == 0 and 128 <= block_size <= 512

    @classmethod
    def takes(cls, *, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> bool:
        """Whether the fused operator is documented for these."""
        return (
            dtype in (torch.float16, torch.bfloat16)
            and head_dim % 16 == 0
            and head_dim <= 512
            and heads <= 256
            and heads // kv_heads <= 64
            and kv_heads * head_dim <= 65535
        )

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
        """
        Raises:
            SightlineError: a layer's keys are more than the operators can address.
        """
        shape = (blocks, self.block_size, kv_heads, head_dim)
        most = _ADDRESSABLE // (self.block_size * kv_heads * head_dim)
        if blocks > most:
            raise SightlineError(
                f"a KV cache of {blocks} blocks of {self.block_size} tokens is more than the NPU's attention "
                f"can address; give it at most {most} blocks, with a smaller --kv-cache-memory"
            )
        devices = device_of_each(device, layers)
        self.keys = [torch.zeros(shape, dtype=dtype, device=each) for each in devices]
        self.values = [torch.zeros(shape, dtype=dtype, device=each) for each in devices]
        self.blocks = blocks
        # True is masked: with sparse mode 3 its last row is laid on the last query and the last key.
        self._masks = {
            each: torch.ones(_MASK, _MASK, dtype=torch.bool, device=each).triu(1) for each in set(devices)
        }
        self._operator = importlib.import_module("torch_npu").npu_fused_infer_attention_score
        self._write = _writer(shape[1:], dtype, devices[0])

    def plan(self, pieces: list[Piece]) -> NpuPlan:
        self.check(pieces)
        plan = NpuPlan(
            pieces, sum(piece.length for piece in pieces), {"slots": packed_slots(pieces, self.block_size)}
        )
        start = 0
        for group in self._batches(pieces):
            name = f"tables{len(plan.calls)}"
            plan.arrays[name] = padded_tables(group, self.block_size)
            length = group[0].length
            plan.calls.append(Call(name, start, len(group), length, [piece.end for piece in group]))
            start += len(group) * length
        return plan

    def _batches(self, pieces: list[Piece]) -> Iterator[list[Piece]]:
        """Neighbours of one length, cut where their blocks together would be more than the cache has."""
        for _, neighbours in itertools.groupby(pieces, key=lambda piece: piece.length):
            batch: list[Piece] = []
            blocks = 0
            for piece in neighbours:
                blocks += used_blocks(piece, self.block_size)
                if batch and blocks > self.blocks:
                    yield batch
                    batch, blocks = [], used_blocks(piece, self.block_size)
                batch.append(piece)
            yield batch

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        plan: NpuPlan,
        scale: float,
    ) -> torch.Tensor:
        keys, values = self.keys[layer], self.values[layer]
        given = plan.on(keys.device)
        self._write(key.contiguous(), value.contiguous(), keys, values, given["slots"])
        query = query.contiguous()
        mixed = [self._call(call, query, keys, values, given[call.table], scale) for call in plan.calls]
        return torch.cat(mixed) if len(mixed) > 1 else mixed[0]

    def _call(
        self,
        call: Call,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        tables: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        _, heads, size = query.shape
        tokens = call.batch * call.length
        # A single query sees all its keys; the operator takes no mask then and ignores the query lengths.
        causal: dict[str, Any] = {}
        if call.length > 1:
            causal = {
                "atten_mask": self._masks[keys.device],
                "sparse_mode": 3,
                "actual_seq_lengths": [call.length] * call.batch,
            }
        output, _ = self._operator(
            query[call.start : call.start + tokens].view(call.batch, call.length, heads * size),
            keys.flatten(2),
            values.flatten(2),
            actual_seq_lengths_kv=call.ends,
            block_table=tables.contiguous(),
            block_size=self.block_size,
            num_heads=heads,
            num_key_value_heads=keys.shape[2],
            scale=scale,
            input_layout="BSH",
            **causal,
        )
        return output.view(tokens, heads, size)


def _writer(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Write:
    """What writes rows into the cache: the fused scatter where it is and lays them where they belong."""
    if getattr(importlib.import_module("torch_npu"), "npu_scatter_pa_kv_cache", None) is None:
        return _copy
    rows = torch.arange(3 * shape[1] * shape[2], device=device).view(3, *shape[1:]).to(dtype)
    slots = torch.tensor([shape[0] + 1, 0, 2 * shape[0] - 1], device=device)

    def written(write: Write) -> torch.Tensor:
        keys = torch.zeros(3, *shape, dtype=dtype, device=device)
        values = torch.zeros_like(keys)
        write(rows, -rows, keys, values, slots)
        return torch.stack([keys, values])

    # Some versions take the cache for the NZ format when they are not told, and some cannot be told.
    return _scatter if agrees("npu_scatter_pa_kv_cache", lambda: written(_scatter), written(_copy)) else _copy


def _scatter(
    key: torch.Tensor, value: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor
) -> None:
    torch_npu: Any = importlib.import_module("torch_npu")
    mode = {"cache_mode": "Norm"} if _has_cache_mode() else {}
    torch_npu.npu_scatter_pa_kv_cache(key, value, keys, values, slots, **mode)


def _has_cache_mode() -> bool:
    packet = getattr(getattr(torch.ops, "npu", None), "npu_scatter_pa_kv_cache", None)
    return "cache_mode" in str(getattr(getattr(packet, "default", None), "_schema", ""))


def _copy(
    key: torch.Tensor, value: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor
) -> None:
    keys.flatten(0, 1).index_copy_(0, slots, key)
    values.flatten(0, 1).index_copy_(0, slots, value)
