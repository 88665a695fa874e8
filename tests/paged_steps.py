"""Random steps over a block pool, and the comparison of a backend with the reference on them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from sightline.hardware.operators.attention.paged import PagedAttention, Piece
from sightline.hardware.operators.attention.reference import ReferenceAttention

BLOCKS = 60
CPU = torch.device("cpu")


def random_steps(seed: int, block_size: int, *, steps: int = 5, longest: int = 60) -> list[list[Piece]]:
    """Steps of a few sequences that grow by chunks and single tokens over scattered blocks; some start on others'."""
    draw = random.Random(seed)
    free = list(range(BLOCKS))
    draw.shuffle(free)
    tables: list[list[int]] = []
    computed: list[int] = []
    planned = []
    for _ in range(steps):
        if len(tables) < 4:
            shared = draw.choice([0, *[length // block_size for length in computed]])
            donor = next((i for i, length in enumerate(computed) if length // block_size >= shared), None)
            tables.append(list(tables[donor][:shared]) if donor is not None else [])
            computed.append(len(tables[-1]) * block_size)
        pieces = []
        for index in draw.sample(range(len(tables)), draw.randint(1, len(tables))):
            length = draw.choice([1, 1, 3, block_size, draw.randint(1, longest)])
            needed = -(-(computed[index] + length) // block_size)
            if needed - len(tables[index]) > len(free):
                continue
            while len(tables[index]) < needed:
                tables[index].append(free.pop())
            pieces.append(Piece(length, computed[index], list(tables[index])))
            computed[index] += length
        if pieces:
            planned.append(pieces)
    return planned


def assert_agrees(
    backend: PagedAttention,
    steps: Sequence[Sequence[Piece]],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    dtype: torch.dtype = torch.float32,
    tolerance: float = 2e-5,
    seed: int = 0,
    device: torch.device = CPU,
) -> None:
    """Both write and attend in two layers, step after step, on the same fresh random inputs."""
    reference = ReferenceAttention(backend.block_size)
    for attention in (reference, backend):
        attention.allocate(
            layers=2,
            blocks=BLOCKS,
            kv_heads=kv_heads,
            head_dim=head_dim,
            dtype=dtype,
            device=device,
        )
    generator = torch.Generator().manual_seed(seed)
    for pieces in steps:
        tokens = sum(piece.length for piece in pieces)
        plans = [attention.plan(list(pieces)) for attention in (reference, backend)]
        for layer in (0, 1):
            query, key, value = (
                # As a model hands them over: heads first in memory.
                torch.randn(count, tokens, head_dim, generator=generator).to(device, dtype).transpose(0, 1)
                for count in (heads, kv_heads, kv_heads)
            )
            expected = reference.attend(layer, query, key, value, plans[0], 0.3)
            given = backend.attend(layer, query, key, value, plans[1], 0.3)
            assert given.shape == query.shape
            assert given.dtype == dtype
            torch.testing.assert_close(given, expected, rtol=0, atol=tolerance)
