"""Attention of single tokens to their sequences' blocks, read where they lie: a Triton kernel for CUDA.

A decode is bound by reading the cache once. The query heads that share a key head are one tile, so each key is
read once for all of them; the context is cut into parts so that few sequences still fill the device, and a second
kernel joins the parts. Imported only where Triton is.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl

_LOG2_E = 1.4426950408889634
# More parts than this cost more to join than they gain.
_MOST_PARTS = 64


def paged_decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Each row attends to the first `lengths[row]` tokens of the blocks in `tables[row]`.

    Shapes alone decide what is launched, so that a CUDA graph can replay it with other tables and lengths.

    Args:
        query: [rows, heads, head_dim], the last dimension contiguous.
        keys, values: [blocks, block_size, kv_heads, head_dim], contiguous.
        tables: [rows, width] int32; what lies behind a row's length is not read.
        lengths: [rows] int32, at least 1.

    Returns:
        [rows, heads, head_dim], in the dtype of `query`.
    """
    rows, heads, size = query.shape
    block_size, kv_heads = keys.shape[1], keys.shape[2]
    tile = 64 if query.dtype != torch.float32 and size <= 128 else 32
    parts = _parts(rows * kv_heads, tables.shape[1] * block_size, tile, query.device)
    output = torch.empty(rows, heads, size, dtype=query.dtype, device=query.device)
    shape = (rows, heads, parts)
    mixed = output if parts == 1 else torch.empty(*shape, size, dtype=torch.float32, device=query.device)
    peaks = torch.empty(shape, dtype=torch.float32, device=query.device)
    totals = torch.empty(shape, dtype=torch.float32, device=query.device)
    padded = max(16, triton.next_power_of_2(size))
    with _launching_on(query.device):
        _attend_part[(rows, kv_heads, parts)](
            query,
            keys,
            values,
            tables,
            lengths,
            mixed,
            peaks,
            totals,
            scale * _LOG2_E,
            query.stride(0),
            query.stride(1),
            tables.stride(0),
            heads,
            kv_heads,
            parts,
            GROUP=heads // kv_heads,
            GROUP_TILE=max(16, triton.next_power_of_2(heads // kv_heads)),
            SIZE=size,
            SIZE_TILE=padded,
            BLOCK=block_size,
            TILE=tile,
            ALONE=parts == 1,
            num_warps=4,
            num_stages=2,
        )
        if parts > 1:
            _join_parts[(rows, heads)](
                mixed,
                peaks,
                totals,
                output,
                heads,
                parts,
                SIZE=size,
                SIZE_TILE=padded,
                PARTS_TILE=triton.next_power_of_2(parts),
                num_warps=4,
            )
    return output


def _launching_on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on the thread's current device, whichever the tensors are on; torch's operators look at them."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _parts(tiles: int, longest: int, tile: int, device: torch.device) -> int:
    """Into how many parts a context is cut: two waves of the device's processors, but no part below two tiles."""
    wanted = -(-2 * _processors(device) // tiles)
    return max(1, min(wanted, longest // (2 * tile), _MOST_PARTS))


@functools.lru_cache(maxsize=16)
def _processors(device: torch.device) -> int:
    if device.type == "cpu":  # Triton's interpreter
        return 4
    return int(torch.get_device_module(device).get_device_properties(device).multi_processor_count)


# Widths of tables and the places of views differ from step to step: a kernel compiled for each would stop the service.
@triton.jit(do_not_specialize=["tables", "lengths", "table_row", "parts"])
def _attend_part(  # type: ignore[no-untyped-def]
    query,
    keys,
    values,
    tables,
    lengths,
    mixed_out,
    peaks,
    totals,
    scale,
    query_row,
    query_head,
    table_row,
    heads,
    kv_heads,
    parts,
    GROUP: tl.constexpr,
    GROUP_TILE: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    ALONE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    part = tl.program_id(2)
    length = tl.load(lengths + row)
    share = tl.cdiv(tl.cdiv(length, parts), TILE) * TILE
    first = part * share
    last = tl.minimum(first + share, length)

    group = tl.arange(0, GROUP_TILE)
    size = tl.arange(0, SIZE_TILE)
    column = tl.arange(0, TILE)
    of_query = (group[:, None] < GROUP) & (size[None, :] < SIZE)
    head_of = head * GROUP + group
    queries = tl.load(
        query + row * query_row + head_of[:, None] * query_head + size[None, :], mask=of_query, other=0.0
    )
    peak = tl.full([GROUP_TILE], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_TILE], tl.float32)
    mixed = tl.zeros([GROUP_TILE, SIZE_TILE], tl.float32)
    for start in range(first, last, TILE):
        position = start + column
        seen = position < last
        block = tl.load(tables + row * table_row + position // BLOCK, mask=seen, other=0).to(tl.int64)
        base = ((block * BLOCK + position % BLOCK) * kv_heads + head) * SIZE
        key = tl.load(
            keys + base[None, :] + size[:, None], mask=seen[None, :] & (size[:, None] < SIZE), other=0.0
        )
        scores = tl.dot(queries, key, input_precision="ieee") * scale
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrunk = tl.exp2(peak - higher)
        total = total * shrunk + tl.sum(weights, 1)
        value = tl.load(
            values + base[:, None] + size[None, :], mask=seen[:, None] & (size[None, :] < SIZE), other=0.0
        )
        mixed = mixed * shrunk[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        peak = higher

    place = (row * heads + head_of) * parts + part
    if ALONE:
        mixed = mixed / total[:, None]
    else:
        tl.store(peaks + place, peak, mask=group < GROUP)
        tl.store(totals + place, total, mask=group < GROUP)
    tl.store(mixed_out + place[:, None] * SIZE + size[None, :], mixed, mask=of_query)


@triton.jit(do_not_specialize=["parts"])
def _join_parts(  # type: ignore[no-untyped-def]
    mixed,
    peaks,
    totals,
    output,
    heads,
    parts,
    SIZE: tl.constexpr,
    SIZE_TILE: tl.constexpr,
    PARTS_TILE: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * heads + tl.program_id(1)
    part = tl.arange(0, PARTS_TILE)
    size = tl.arange(0, SIZE_TILE)
    there = part < parts
    peak = tl.load(peaks + place * parts + part, mask=there, other=float("-inf"))
    total = tl.load(totals + place * parts + part, mask=there, other=0.0)
    weight = tl.exp2(peak - tl.max(peak, 0))  # 0 for a part that saw nothing
    rows = tl.load(
        mixed + (place * parts + part)[:, None] * SIZE + size[None, :],
        mask=there[:, None] & (size[None, :] < SIZE),
        other=0.0,
    )
    joined = tl.sum(rows * weight[:, None], 0) / tl.sum(total * weight, 0)
    tl.store(output + place * SIZE + size, joined, mask=size < SIZE)
