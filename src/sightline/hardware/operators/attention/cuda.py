"""Paged attention on CUDA: decodes read the cache where it lies, prompts run through torch's flash attention.

A prompt's chunk gathers its context once for each layer, little beside what it computes; a decode copies nothing.
torch's own paged attention (varlen_attn with a block table) is not used: its FlashAttention 2 wants blocks of 256
tokens and, where it cuts long contexts into parts, leaves rows unwritten (pytorch#194167, torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from sightline.hardware.operators.attention.paged import (
    PagedAttention,
    Piece,
    Plan,
    cumulative,
    device_of_each,
    first_blocks,
    packed_slots,
    used_blocks,
)

# Pieces up to this length (a token and its drafts) are rows of a decode; each row reads the cache for itself.
_SHORT = 8

Decode = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
Prompt = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, int, float], torch.Tensor
]


@dataclass
class CudaPlan(Plan):
    """Arrays: slots [tokens]; of short pieces tables [rows, width] and lengths [rows]; of long ones cu_query and
    cu_key [pieces + 1], and gather [keys] where a long piece has context; short_rows and long_rows where the short
    pieces do not all come first.
    """

    rows: int = 0
    longest: int = 0
    longest_key: int = 0
    long: list[Piece] = field(default_factory=list)


class CudaAttention(PagedAttention):
    """One [blocks + 1, block_size, kv_heads, head_dim] tensor for the keys of each layer, one for its values.

    The last block belongs to nobody: padded rows of a captured step write there.
    """

    def __init__(
        self, block_size: int | None = None, *, decode: Decode | None = None, prompt: Prompt | None = None
    ) -> None:
        """
        Args:
            decode: as `paged_decode.paged_decode`; a plain form where it is None.
            prompt: as `varlen.causal_varlen`; a plain form where it is None.
        """
        super().__init__(block_size)
        self._decode = decode or plain_decode
        self._prompt = prompt
        #: Whether a step of single tokens can be captured: nothing in it depends on lengths known to the host.
        self.capturable = decode is not None

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
        shape = (blocks + 1, self.block_size, kv_heads, head_dim)
        devices = device_of_each(device, layers)
        self.keys = [torch.zeros(shape, dtype=dtype, device=each) for each in devices]
        self.values = [torch.zeros(shape, dtype=dtype, device=each) for each in devices]
        self.blocks = blocks
        self.capturable = self.capturable and len(set(devices)) == 1

    def plan(self, pieces: list[Piece]) -> CudaPlan:
        self.check(pieces)
        short = [piece.length <= _SHORT for piece in pieces]
        rows = [piece for piece, is_short in zip(pieces, short, strict=True) if is_short]
        long = [piece for piece, is_short in zip(pieces, short, strict=True) if not is_short]
        arrays = {"slots": packed_slots(pieces, self.block_size)}
        if rows:
            arrays |= row_arrays(rows, self.block_size)
        if long:
            arrays["cu_query"] = cumulative([piece.length for piece in long])
            arrays["cu_key"] = cumulative([piece.end for piece in long])
            if any(piece.context for piece in long):
                arrays["gather"] = packed_slots(
                    [Piece(piece.end, 0, piece.table) for piece in long], self.block_size
                )
        if long and any(short[len(rows) :]):
            is_row = np.repeat(short, [piece.length for piece in pieces])
            arrays["short_rows"], arrays["long_rows"] = np.flatnonzero(is_row), np.flatnonzero(~is_row)
        return CudaPlan(
            pieces,
            sum(piece.length for piece in pieces),
            arrays,
            rows=sum(piece.length for piece in rows),
            longest=max((piece.length for piece in long), default=0),
            longest_key=max((piece.end for piece in long), default=0),
            long=long,
        )

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        plan: CudaPlan,
        scale: float,
    ) -> torch.Tensor:
        keys, values = self.keys[layer], self.values[layer]
        given = plan.on(keys.device)
        keys.view(-1, *keys.shape[2:]).index_copy_(0, given["slots"], key.to(keys.dtype))
        values.view(-1, *values.shape[2:]).index_copy_(0, given["slots"], value.to(values.dtype))
        if not plan.long:
            return self._decode(query, keys, values, given["tables"], given["lengths"], scale)
        if not plan.rows:
            return self._attend_long(query, key, value, layer, plan, scale)
        short, long = self._split(given, plan, query.device)
        mixed = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        mixed[short] = self._decode(query[short], keys, values, given["tables"], given["lengths"], scale)
        mixed[long] = self._attend_long(query[long], key[long], value[long], layer, plan, scale)
        return mixed

    @staticmethod
    def _split(
        given: dict[str, torch.Tensor], plan: CudaPlan, device: torch.device
    ) -> tuple[slice, slice] | tuple[torch.Tensor, torch.Tensor]:
        """Where the rows of short and of long pieces lie: slices, which copy nothing, in the usual order."""
        if "short_rows" not in given:
            return slice(plan.rows), slice(plan.rows, None)
        return given["short_rows"].long(), given["long_rows"].long()

    def _attend_long(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layer: int,
        plan: CudaPlan,
        scale: float,
    ) -> torch.Tensor:
        keys, values = self.keys[layer], self.values[layer]
        given = plan.on(keys.device)
        if "gather" in given:
            key = keys.view(-1, *keys.shape[2:]).index_select(0, given["gather"])
            value = values.view(-1, *values.shape[2:]).index_select(0, given["gather"])
        if self._prompt is None:
            return plain_prompt(query, key, value, plan.long, scale)
        return self._prompt(
            query, key, value, given["cu_query"], given["cu_key"], plan.longest, plan.longest_key, scale
        )


class DecodeBuffers:
    """What a captured step of single tokens reads of its plan, at fixed addresses."""

    def __init__(self, attention: CudaAttention, rows: int, width: int) -> None:
        """
        Args:
            rows: most sequences of a step.
            width: most blocks of a sequence.
        """
        device = attention.keys[0].device
        self.attention = attention
        self.tables = torch.full((rows, width), attention.blocks, dtype=torch.int32, device=device)
        self.lengths = torch.ones(rows, dtype=torch.int32, device=device)
        self.slots = torch.full((rows,), attention.blocks * attention.block_size, device=device)

    def plan(self, rows: int) -> CudaPlan:
        """A plan of the first `rows` rows that reads the buffers; what `fill` wrote last is what it says."""
        tensors = {"slots": self.slots[:rows], "tables": self.tables[:rows], "lengths": self.lengths[:rows]}
        nobody = Piece(1, 0, [self.attention.blocks])
        return CudaPlan([nobody] * rows, rows, {}, {self.slots.device: tensors}, rows=rows)

    def fill(self, pieces: Sequence[Piece], rows: int) -> None:
        """Describe `pieces`, all of one token; the rows behind them up to `rows` write into nobody's block."""
        spare = self.attention.blocks
        padded = [*pieces, *[Piece(1, 0, [spare])] * (rows - len(pieces))]
        arrays = row_arrays(padded, self.attention.block_size)
        arrays["slots"] = packed_slots(padded, self.attention.block_size)
        given = Plan(padded, rows, arrays).on(self.slots.device)
        self.slots[:rows].copy_(given["slots"])
        self.lengths[:rows].copy_(given["lengths"])
        self.tables[:rows, : given["tables"].shape[1]].copy_(given["tables"])


def row_arrays(pieces: Sequence[Piece], block_size: int) -> dict[str, np.ndarray]:
    """One row for each token of short pieces: its block table, and how many tokens of it the row sees."""
    counts = [used_blocks(piece, block_size) for piece in pieces]
    tables = np.zeros((sum(piece.length for piece in pieces), max(counts)), dtype=np.int32)
    lengths = np.empty(len(tables), dtype=np.int32)
    row = 0
    for piece, count in zip(pieces, counts, strict=True):
        end = row + piece.length
        tables[row:end, :count] = first_blocks(piece, count)
        lengths[row:end] = range(piece.context + 1, piece.end + 1)
        row = end
    return {"tables": tables, "lengths": lengths}


def plain_decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """`paged_decode` without Triton: copies the blocks of all rows, so it is right rather than fast."""
    key, value = (
        keys[tables].flatten(1, 2),
        values[tables].flatten(1, 2),
    )  # [rows, tokens, kv_heads, head_dim]
    seen = torch.arange(key.shape[1], device=key.device) < lengths[:, None]
    return _masked(query[:, None], key, value, seen[:, None, None], scale)[:, 0]


def plain_prompt(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, pieces: Sequence[Piece], scale: float
) -> torch.Tensor:
    """Causal attention of each piece to its own keys, with torch's scaled_dot_product_attention."""
    parts = query.split([piece.length for piece in pieces])
    ends = [piece.end for piece in pieces]
    mixed = []
    for piece, part, its_key, its_value in zip(
        pieces, parts, key.split(ends), value.split(ends), strict=True
    ):
        seen = torch.ones(piece.length, piece.end, dtype=torch.bool, device=key.device).tril(piece.context)
        mixed.append(_masked(part[None], its_key[None], its_value[None], seen, scale)[0])
    return torch.cat(mixed)


def _masked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor, scale: float
) -> torch.Tensor:
    """[B, T, heads, D] and [B, S, kv_heads, D] with a mask; keys are repeated, which every kernel of torch takes."""
    group = query.shape[2] // key.shape[2]
    key, value = (
        tensor.to(query.dtype).repeat_interleave(group, dim=2).transpose(1, 2) for tensor in (key, value)
    )
    return torch.nn.functional.scaled_dot_product_attention(
        query.transpose(1, 2), key, value, attn_mask=seen, scale=scale
    ).transpose(1, 2)
