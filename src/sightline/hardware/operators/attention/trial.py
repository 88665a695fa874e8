"""Does an operator compute what it should, on this very device? Tried once, before the engine relies on it.

Fused operators differ between versions in what they accept and in what they silently get wrong (torch's paged
varlen attention under FlashAttention 2, for one, leaves rows unwritten once it splits the cache, pytorch#194167).
So a backend is used where it agrees with the plain form, and nobody has to know which versions do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from sightline.errors import first_line
from sightline.hardware.operators.attention.paged import PagedAttention, Piece
from sightline.hardware.operators.attention.reference import ReferenceAttention

log = logging.getLogger("sightline.hardware")

# A wrong operator is wrong by the size of the values, which is about 1; rounding stays far below.
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def agrees(name: str, attempt: Callable[[], torch.Tensor], expected: torch.Tensor) -> bool:
    """Whether `attempt` runs and gives `expected` up to rounding; why not is logged under `name`."""
    try:
        given = attempt()
        torch.testing.assert_close(
            given.float().cpu(), expected.float().cpu(), rtol=0, atol=_TOLERANCE.get(expected.dtype, 1e-1)
        )
    except Exception as error:  # whatever a kernel raises, the plain form is there
        log.info("%s is not used: %s", name, first_line(error))
        return False
    return True


def backend_agrees(
    backend: PagedAttention,
    *,
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device,
) -> bool:
    """Whether `backend` agrees with the reference on a small cache: prompts, chunks, decodes, shared blocks.

    The backend's cache is a small one afterwards; allocate the real one.
    """
    reference = ReferenceAttention(backend.block_size)
    steps = _steps(backend.block_size)
    blocks = 1 + max(max(piece.table) for pieces in steps for piece in pieces)
    generator = torch.Generator().manual_seed(0)

    def drawn(tokens: int, count: int) -> torch.Tensor:
        return torch.randn(tokens, count, head_dim, generator=generator).to(device, dtype)

    inputs = [
        (drawn(n, heads), drawn(n, kv_heads), drawn(n, kv_heads))
        for n in (sum(piece.length for piece in pieces) for pieces in steps)
    ]

    def run(attention: PagedAttention) -> torch.Tensor:
        attention.allocate(
            layers=1, blocks=blocks, kv_heads=kv_heads, head_dim=head_dim, dtype=dtype, device=device
        )
        mixed = [
            attention.attend(0, *tensors, attention.plan(pieces), head_dim**-0.5)
            for pieces, tensors in zip(steps, inputs, strict=True)
        ]
        return torch.cat(mixed)

    return agrees(type(backend).__name__, lambda: run(backend), run(reference))


def _steps(block_size: int) -> list[list[Piece]]:
    """A prompt; then its second chunk beside another prompt; then a decode of both beside one that shares a block."""
    length = 2 * block_size + 21
    first, second, third = [4, 1, 6, 2, 9], [3, 8, 0, 10], [4, 7, 5]
    return [
        [Piece(length, 0, first)],
        [Piece(block_size, length, first), Piece(length, 0, second)],
        [Piece(1, length + block_size, first), Piece(3, length, second), Piece(19, block_size, third)],
        [Piece(1, length + block_size + 1, first), Piece(1, length + 3, second)],
    ]
