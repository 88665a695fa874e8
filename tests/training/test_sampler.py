"""The order of samples: every one once an epoch, similar lengths together, decided by seed and epoch alone."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from sightline.training.sampler import LengthGroupedSampler


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=200),
    batch_size=st.integers(1, 7),
    epoch=st.integers(0, 3),
)
def test_every_sample_once(lengths: list[int], batch_size: int, epoch: int) -> None:
    sampler = LengthGroupedSampler(lengths, batch_size, seed=3)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths)))
    assert len(sampler) == len(order)
    assert list(sampler) == order


def test_epochs_and_seeds_differ() -> None:
    lengths = list(range(40))
    orders = set()
    for seed in (0, 1):
        sampler = LengthGroupedSampler(lengths, 4, seed)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            orders.add(tuple(sampler))
    assert len(orders) == 6


def test_batches_hold_similar_lengths() -> None:
    chance = random.Random(0)
    lengths = [chance.randint(10, 1000) for _ in range(640)]
    order = list(LengthGroupedSampler(lengths, 8, seed=0))

    def padding(indices: list[int]) -> int:
        batches = [[lengths[i] for i in indices[start : start + 8]] for start in range(0, len(indices), 8)]
        return sum(max(batch) * len(batch) - sum(batch) for batch in batches)

    assert padding(order) < 0.1 * padding(list(range(640)))


def test_first_batches_are_not_always_the_longest() -> None:
    lengths = list(range(320))
    firsts = set()
    for epoch in range(5):
        sampler = LengthGroupedSampler(lengths, 4, seed=0)
        sampler.set_epoch(epoch)
        firsts.add(lengths[next(iter(sampler))] // 32)
    assert len(firsts) > 1
