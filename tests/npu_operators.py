"""A stand-in for torch_npu: what its pages document, checked argument for argument, and computed plainly.

Sources: docs/context/torch_npu-npu_fused_infer_attention_score.md, torch_npu-npu_scatter_pa_kv_cache.md and
torch_npu-npu_fusion_attention.md of Ascend/op-plugin (Atlas A2 and A3). It knows what this project may use: another
argument, layout or mode is an error here, though the operator may take it.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

HALF = (torch.float16, torch.bfloat16)


class TorchNpu:
    """Put it at sys.modules["torch_npu"]. `calls` records the operators' names and keyword arguments."""

    def __init__(self, *, scatter: bool = True) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        if scatter:
            self.npu_scatter_pa_kv_cache = self._scatter

    def npu_fused_infer_attention_score(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        atten_mask: torch.Tensor | None = None,
        actual_seq_lengths: list[int] | None = None,
        actual_seq_lengths_kv: list[int] | None = None,
        block_table: torch.Tensor | None = None,
        num_heads: int = 1,
        scale: float = 1.0,
        input_layout: str = "BSH",
        num_key_value_heads: int = 0,
        sparse_mode: int = 0,
        block_size: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls.append(
            ("attention", {"layout": input_layout, "shape": tuple(query.shape), "scale": scale})
        )
        assert input_layout == "BSH"
        batch, length, width = query.shape
        size = width // num_heads
        assert query.dtype in HALF
        assert query.dtype == key.dtype == value.dtype
        assert all(tensor.is_contiguous() for tensor in (query, key, value)), "non-contiguous tensors"
        assert batch <= 65536
        assert num_heads <= 256
        assert size % 16 == 0
        assert size <= 512
        assert num_key_value_heads > 0
        assert num_heads % num_key_value_heads == 0
        assert num_heads // num_key_value_heads <= 64
        # The paged cache.
        assert key.shape == value.shape
        assert key.dim() == 3
        assert key.shape[1:] == (block_size, num_key_value_heads * size)
        assert key.shape[2] <= 65535
        assert key.numel() < 2**31
        assert block_size % (16 if length == 1 else 128) == 0
        assert 128 <= block_size <= 512
        assert block_table is not None
        assert block_table.dtype == torch.int32
        assert block_table.dim() == 2
        assert block_table.shape[0] == batch
        assert block_table.is_contiguous()
        assert isinstance(actual_seq_lengths_kv, list), "required with a block table, on the host"
        assert len(actual_seq_lengths_kv) == batch
        counts = [-(-end // block_size) for end in actual_seq_lengths_kv]
        assert block_table.shape[1] >= max(counts)
        assert key.shape[0] >= sum(counts), "fewer blocks than the pieces of the call have together"
        if length == 1:
            assert atten_mask is None
            assert sparse_mode == 0
        else:
            assert sparse_mode == 3
            assert atten_mask is not None
            assert atten_mask.shape == (2048, 2048)
            assert atten_mask.dtype in (torch.bool, torch.int8, torch.uint8)
            assert torch.equal(atten_mask.bool(), torch.ones(2048, 2048, dtype=torch.bool).triu(1))
            assert isinstance(actual_seq_lengths, list)
            assert len(actual_seq_lengths) == batch
            assert all(0 <= given <= length for given in actual_seq_lengths)
        output = torch.zeros_like(query)
        for row in range(batch):
            end = actual_seq_lengths_kv[row]
            new = length if length == 1 or actual_seq_lengths is None else actual_seq_lengths[row]
            blocks = block_table[row, : counts[row]].long()
            its_key, its_value = (
                cache[blocks].view(-1, num_key_value_heads, size)[:end].float() for cache in (key, value)
            )
            mixed = _attend(
                query[row, :new].view(new, num_heads, size).float(), its_key, its_value, scale, end - new
            )
            output[row, :new] = mixed.flatten(1).to(query.dtype)
        return output, torch.zeros(1)

    def _scatter(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        slot_mapping: torch.Tensor,
    ) -> None:
        self.calls.append(("scatter", {}))
        assert key.dim() == value.dim() == 3
        assert key.shape[:2] == value.shape[:2]
        assert key_cache.dim() == value_cache.dim() == 4
        assert key_cache.shape[2:] == key.shape[1:], (
            "the second scene: [blocks, block_size, heads, head size]"
        )
        assert key.dtype == value.dtype == key_cache.dtype == value_cache.dtype
        tensors = (key, value, key_cache, value_cache, slot_mapping)
        assert all(tensor.is_contiguous() for tensor in tensors)
        assert slot_mapping.dtype in (torch.int32, torch.int64)
        assert slot_mapping.shape == key.shape[:1]
        slots = slot_mapping.tolist()
        assert len(set(slots)) == len(slots), "slots must not repeat"
        assert all(0 <= slot < key_cache.shape[0] * key_cache.shape[1] for slot in slots)
        key_cache.view(-1, *key.shape[1:])[slot_mapping.long()] = key
        value_cache.view(-1, *value.shape[1:])[slot_mapping.long()] = value

    def npu_fusion_attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        head_num: int,
        input_layout: str,
        *,
        scale: float = 1.0,
        keep_prob: float = 1.0,
        actual_seq_qlen: tuple[int, ...] | None = None,
        actual_seq_kvlen: tuple[int, ...] | None = None,
        sparse_mode: int = 0,
    ) -> tuple[Any, ...]:
        self.calls.append(("fusion", {"ends": actual_seq_qlen, "scale": scale}))
        assert input_layout == "TND"
        assert query.dtype in (*HALF, torch.float32)
        assert query.dtype == key.dtype == value.dtype
        assert all(tensor.is_contiguous() for tensor in (query, key, value))
        assert query.shape[1] == head_num
        assert query.shape[1] % key.shape[1] == 0
        assert query.shape[2] <= 768
        assert keep_prob == 1.0
        assert sparse_mode == 0
        assert actual_seq_qlen is not None
        assert actual_seq_kvlen == actual_seq_qlen
        bounds = (0, *actual_seq_qlen)
        assert all(a < b for a, b in itertools.pairwise(bounds)), "cumulative ends, without the leading 0"
        assert bounds[-1] == len(query) == len(key)
        assert len(actual_seq_qlen) <= 2048
        mixed = [
            _attend(query[a:b].float(), key[a:b].float(), value[a:b].float(), scale, None)
            for a, b in itertools.pairwise(bounds)
        ]
        return torch.cat(mixed).to(query.dtype), None, None, None, 0, 0, 0


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, before: int | None
) -> torch.Tensor:
    """[T, N, D] and [S, M, D]; with `before`, query i sees keys up to before + i."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    if before is not None:
        scores += torch.full(scores.shape[1:], float("-inf")).triu(before + 1)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)
