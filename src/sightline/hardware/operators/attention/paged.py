"""Attention over a key-value cache in blocks: what a step asks of it, and what every backend shares.

A step runs pieces of many sequences packed one after the other. A piece attends to its sequence's tokens in the
cache and to its own, causally. Each device keeps the cache in the layout that its fastest operator reads, so the
cache belongs to the backend, and the engine knows blocks only by their numbers.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from sightline.errors import SightlineError, UsageError


@dataclass(frozen=True)
class Piece:
    """A run of new tokens of one sequence: one token of a decode, or a chunk of a prompt.

    Attributes:
        length: its tokens in this step, at least 1.
        context: tokens of the sequence that are in the cache before them.
        table: the sequence's blocks in order, enough for context + length tokens; more are ignored.
    """

    length: int
    context: int
    table: Sequence[int]

    @property
    def end(self) -> int:
        """Tokens in the cache once the piece is written."""
        return self.context + self.length


@dataclass
class Plan:
    """Where a step's tokens go and what they attend to: made once a step, used by every layer.

    Arrays are built on the host and travel to a device in one copy, when its first layer asks for them.
    """

    pieces: list[Piece]
    tokens: int
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    _tensors: dict[torch.device, dict[str, torch.Tensor]] = field(default_factory=dict)

    def on(self, device: torch.device) -> dict[str, torch.Tensor]:
        """The arrays on `device`, int32 and in their shapes; `slots` is int64, as torch's writes ask for."""
        if device not in self._tensors:
            self._tensors[device] = self._copied(device)
        return self._tensors[device]

    def _copied(self, device: torch.device) -> dict[str, torch.Tensor]:
        host = torch.from_numpy(np.concatenate([a.ravel() for a in self.arrays.values()]).astype(np.int32))
        # Pinned, the copy waits for nothing; torch keeps the pinned memory until the copy is done. Elsewhere the host
        # waits: of memory that is not pinned nobody knows when it may be reused.
        pinned = device.type == "cuda"
        if pinned:
            host = host.pin_memory()
        parts = host.to(device, non_blocking=pinned).split([a.size for a in self.arrays.values()])
        tensors = {
            name: part.view(array.shape)
            for (name, array), part in zip(self.arrays.items(), parts, strict=True)
        }
        if "slots" in tensors:
            tensors["slots"] = tensors["slots"].long()
        return tensors


class PagedAttention(abc.ABC):
    """The key-value cache of all layers, and attention over it. One for each engine."""

    #: Tokens of a block where the caller has no wish.
    preferred_block_size = 16

    def __init__(self, block_size: int | None = None) -> None:
        """
        Raises:
            UsageError: the backend cannot read blocks of `block_size` tokens.
        """
        self.block_size = self.preferred_block_size if block_size is None else block_size
        if not self.accepts_block_size(self.block_size):
            raise UsageError(
                f"block size {self.block_size} does not suit {type(self).__name__}; "
                f"use {self.preferred_block_size}"
            )
        self.blocks = 0

    @classmethod
    def accepts_block_size(cls, block_size: int) -> bool:
        return block_size >= 1

    def bytes_per_block(self, *, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes of one block: the keys and values of `block_size` tokens in all layers."""
        return 2 * layers * self.block_size * kv_heads * head_dim * dtype.itemsize

    @abc.abstractmethod
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
        """Make the cache; one that was there is dropped.

        Args:
            device: where the cache lies; one for each layer when the model is spread over several.
        """

    @abc.abstractmethod
    def plan(self, pieces: list[Piece]) -> Plan:
        """What a step of these pieces needs; built once and handed to `attend` for each layer.

        Raises:
            SightlineError: a block table is too short, or names a block that is not there.
        """

    @abc.abstractmethod
    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        plan: Any,
        scale: float,
    ) -> torch.Tensor:
        """Write the step's keys and values into the cache, then attend.

        Token i of a piece sees the piece's context and the piece's tokens up to and with i.

        Args:
            query: [tokens, heads, head_dim]; heads is a multiple of kv_heads, and neighbouring heads share one.
            key, value: [tokens, kv_heads, head_dim], in the order of the plan's pieces.
            scale: what the products of queries and keys are multiplied by.

        Returns:
            [tokens, heads, head_dim], in the dtype of `query`.
        """

    def check(self, pieces: Sequence[Piece]) -> None:
        """
        Raises:
            SightlineError: a block table is too short.
        """
        for index, piece in enumerate(pieces):
            if piece.length < 1 or piece.context < 0 or len(piece.table) * self.block_size < piece.end:
                raise SightlineError(
                    f"piece {index} of the step has {piece.length} tokens after {piece.context} in the cache, "
                    f"and {len(piece.table)} blocks of {self.block_size} tokens"
                )


def slots(piece: Piece, block_size: int) -> np.ndarray:
    """Where the piece's tokens lie in the cache seen as one row of slots: [length], int64."""
    first = piece.context // block_size
    blocks = np.asarray(piece.table[first : used_blocks(piece, block_size)], dtype=np.int64)
    positions = np.arange(piece.context, piece.end)
    return blocks[positions // block_size - first] * block_size + positions % block_size


def packed_slots(pieces: Sequence[Piece], block_size: int) -> np.ndarray:
    """The slots of all pieces, one after the other: [tokens], int64."""
    if all(piece.length == 1 for piece in pieces):
        places = ((piece.table, *divmod(piece.context, block_size)) for piece in pieces)
        return np.array([table[block] * block_size + place for table, block, place in places])
    return np.concatenate([slots(piece, block_size) for piece in pieces])


def used_blocks(piece: Piece, block_size: int) -> int:
    """How many blocks of its table hold the piece's context and its own tokens."""
    return -(-piece.end // block_size)


def runs(table: Sequence[int], tokens: int, block_size: int) -> list[tuple[int, int]]:
    """The first `tokens` tokens of a block table as (first slot, tokens), neighbouring blocks joined."""
    blocks = np.asarray(table[: -(-tokens // block_size)], dtype=np.int64)
    starts = np.flatnonzero(np.diff(blocks, prepend=blocks[:1] - 2) != 1) if len(blocks) else blocks
    ends = np.append(starts[1:], len(blocks)) * block_size
    lengths = np.minimum(ends, tokens) - starts * block_size
    return list(zip((blocks[starts] * block_size).tolist(), lengths.tolist(), strict=True))


def cumulative(lengths: Sequence[int]) -> np.ndarray:
    """0 and the running sums: [len(lengths) + 1], int32."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def padded_tables(pieces: Sequence[Piece], block_size: int, fill: int = 0) -> np.ndarray:
    """The used part of each block table, padded with `fill`: [pieces, longest], int32."""
    counts = [used_blocks(piece, block_size) for piece in pieces]
    tables = np.full((len(pieces), max(counts)), fill, dtype=np.int32)
    for row, piece, count in zip(tables, pieces, counts, strict=True):
        row[:count] = first_blocks(piece, count)
    return tables


def first_blocks(piece: Piece, count: int) -> np.ndarray:
    """The first `count` blocks of its table: [count], int32."""
    return np.fromiter(piece.table, dtype=np.int32, count=count)  # seven times as fast as np.array on a list


def device_of_each(device: torch.device | Sequence[torch.device], layers: int) -> list[torch.device]:
    """One device for each layer."""
    return [
        torch.device(each)
        for each in ([device] * layers if isinstance(device, str | torch.device) else device)
    ]
