"""Decode steps captured as CUDA graphs: one launch in place of thousands, of which a small batch consists.

A graph replays what it was captured with, at the same addresses and shapes. So inputs lie in fixed buffers, steps are
padded to one of a few sizes, and padded rows write their keys into a block that belongs to nobody.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from sightline.errors import first_line
from sightline.hardware.operators.attention.cuda import CudaAttention, DecodeBuffers
from sightline.hardware.operators.attention.paged import PagedAttention, Piece, Plan

log = logging.getLogger("sightline.hardware")

#: (token ids [rows], positions [3, rows], plan) -> hidden states [rows, hidden_size]
Step = Callable[[torch.Tensor, torch.Tensor, Plan], torch.Tensor]

# The first runs of a step compile and choose kernels and take workspaces; none of that may happen in a capture.
_WARM_UPS = 2


def can_capture(attention: PagedAttention) -> bool:
    """Whether steps with this attention can be captured at all."""
    return (
        isinstance(attention, CudaAttention)
        and attention.capturable
        and attention.keys[0].device.type == "cuda"
    )


def sizes(most: int) -> list[int]:
    """Batch sizes to capture, so that padding is at most 8 rows: 1, 2, 4, 8, 16, 24, ... and `most` itself."""
    below = [size for size in (1, 2, 4, *range(8, most, 8)) if size < most]
    return [*below, most]


class DecodeGraphs:
    """A decode step, replayed where a graph fits and run as it is where none does.

    Not for several threads: the buffers are shared by all sizes.
    """

    def __init__(
        self,
        step: Step,
        attention: PagedAttention,
        *,
        max_num_seqs: int,
        max_blocks: int,
        enforce_eager: bool = False,
    ) -> None:
        """
        Args:
            step: the model's forward for single tokens; it must not read tensors on the host.
            attention: allocated; where it cannot be captured every step runs as it is.
            max_num_seqs: most sequences of a step.
            max_blocks: most blocks of a sequence.
            enforce_eager: capture nothing.
        """
        self._step = step
        self._attention = attention
        self._sizes = sizes(max_num_seqs)
        self._replays: dict[int, tuple[Callable[[], None], torch.Tensor]] = {}
        self._buffers: DecodeBuffers | None = None
        if not enforce_eager and can_capture(attention):
            assert isinstance(attention, CudaAttention)
            self._buffers = DecodeBuffers(attention, max_num_seqs, max_blocks)
            device = self._buffers.slots.device
            self._ids = torch.zeros(max_num_seqs, dtype=torch.int64, device=device)
            self._positions = torch.zeros(3, max_num_seqs, dtype=torch.int64, device=device)

    @property
    def captured(self) -> list[int]:
        """The batch sizes that have a graph."""
        return sorted(self._replays)

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture all sizes, largest first, so that the smaller ones find their memory in its pool.

        Where one cannot be captured, a warning says why, and every step runs as it is from then on.
        """
        if self._buffers is None:
            return
        try:
            with torch.cuda.device(self._ids.device):
                pool = torch.cuda.graph_pool_handle()
                for size in reversed(self._sizes):
                    self._buffers.fill([], size)
                    self._replays[size] = _record(self._bound(size), pool)
        except Exception as error:  # a model or a driver that cannot be captured is no reason not to serve
            log.warning("decoding runs without CUDA graphs: %s", first_line(error))
            self._replays, self._buffers = {}, None

    @torch.inference_mode()
    def run(self, ids: torch.Tensor, positions: torch.Tensor, pieces: Sequence[Piece]) -> torch.Tensor:
        """The hidden states of a step of single tokens.

        Args:
            ids: [rows] int64; positions: [3, rows] int64; on the model's device.
            pieces: one of one token for each row.

        Returns:
            [rows, hidden_size]. Of a replayed step it is a view that the next step overwrites.
        """
        rows = len(pieces)
        size = self._size_for(rows)
        if size is None or self._buffers is None:
            return self._eager(ids, positions, pieces)
        self._ids[:rows].copy_(ids, non_blocking=True)
        self._positions[:, :rows].copy_(positions, non_blocking=True)
        self._buffers.fill(pieces, size)
        replay, output = self._replays[size]
        replay()
        return output[:rows]

    def _size_for(self, rows: int) -> int | None:
        """The smallest captured size that holds `rows`."""
        captured = self.captured
        place = bisect.bisect_left(captured, rows)
        return captured[place] if place < len(captured) else None

    def _bound(self, size: int) -> Callable[[], torch.Tensor]:
        """The step on the first `size` rows of the buffers."""
        assert self._buffers is not None
        plan = self._buffers.plan(size)
        return lambda: self._step(self._ids[:size], self._positions[:, :size], plan)

    def _eager(self, ids: torch.Tensor, positions: torch.Tensor, pieces: Sequence[Piece]) -> torch.Tensor:
        return self._step(ids, positions, self._attention.plan(list(pieces)))


def _record(run: Callable[[], torch.Tensor], pool: Any) -> tuple[Callable[[], None], torch.Tensor]:
    """What replays `run`, and the tensor in which each replay leaves its result."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        output = run()
    return graph.replay, output
