"""The order of samples: shuffled anew each epoch, with samples of similar length in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

# Lengths are sorted within windows of this many batches: enough to leave little padding, few enough to stay random.
_WINDOW = 32


class LengthGroupedSampler(Sampler[int]):
    """Indices of an epoch. The order depends on seed and epoch alone, so a resumed run sees what it would have seen."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order = torch.randperm(len(self), generator=generator).tolist()
        batches: list[list[int]] = []
        window = self._batch_size * _WINDOW
        for start in range(0, len(order), window):
            chunk = sorted(order[start : start + window], key=lambda index: -self._lengths[index])
            batches += [chunk[i : i + self._batch_size] for i in range(0, len(chunk), self._batch_size)]
        # A short batch must stay last: the loader cuts the sequence of indices every batch_size.
        whole = [batch for batch in batches if len(batch) == self._batch_size]
        short = [batch for batch in batches if len(batch) < self._batch_size]
        for position in torch.randperm(len(whole), generator=generator).tolist():
            yield from whole[position]
        for batch in short:
            yield from batch
