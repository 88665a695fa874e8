"""CpuAttention against the definition: every form it takes, on fresh random inputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_steps import assert_agrees, random_steps

from sightline.hardware.operators.attention import cpu
from sightline.hardware.operators.attention.cpu import CpuAttention
from sightline.hardware.operators.attention.paged import Piece


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6),
    st.sampled_from([1, 4, 16]),
    st.sampled_from([(4, 4), (6, 2), (3, 1)]),
    st.sampled_from([1, 512]),
)
def test_agrees_with_the_reference(
    seed: int, block_size: int, heads: tuple[int, int], fused_below: int
) -> None:
    steps = random_steps(seed, block_size, longest=60 if block_size > 1 else 12)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "_FUSED_BELOW", fused_below)
        assert_agrees(CpuAttention(block_size), steps, heads=heads[0], kv_heads=heads[1], seed=seed)


def test_a_chunk_behind_blocks_in_two_places() -> None:
    steps = [[Piece(9, 0, [3, 1, 7])], [Piece(5, 9, [3, 1, 7, 0])], [Piece(1, 14, [3, 1, 7, 0])]]
    assert_agrees(CpuAttention(4), steps)


def test_neighbouring_blocks_are_one_run() -> None:
    plan = CpuAttention(4).plan([Piece(1, 9, [5, 6, 7]), Piece(3, 8, [1, 3, 4])])
    assert [(batch.rows, batch.runs) for batch in plan.batches] == [(slice(0, 1), [(20, 10)])]
    assert plan.chunks == [(slice(1, 4), [(4, 4), (12, 4)])]


def test_sequences_of_one_length_at_equal_distances_are_one_batch() -> None:
    alike = [Piece(1, 9, [0, 2, 3]), Piece(1, 9, [0, 5, 6]), Piece(1, 9, [0, 8, 9])]  # one shared block
    others = [Piece(1, 9, [0, 10, 11]), Piece(1, 8, [0, 13, 14])]
    batches = CpuAttention(4).plan(alike + others).batches
    assert [batch.rows for batch in batches] == [slice(0, 3), slice(3, 4), slice(4, 5)]
    assert (batches[0].runs, batches[0].distances) == ([(0, 4), (8, 6)], [0, 12])


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(4, 14), st.integers(0, 1))
def test_batches_agree_with_the_reference(seed: int, sequences: int, tokens: int, shared: int) -> None:
    blocks, own = -(-(tokens + 1) // 4), range(shared, 100)
    tables = [
        [*range(shared), *own[index * (blocks + 1) : index * (blocks + 1) + blocks - shared]]
        for index in range(sequences)
    ]
    prompts = [Piece(tokens, 0, table) for table in tables]
    steps = [[prompt] for prompt in prompts] + [[Piece(1, tokens, table) for table in tables]]
    assert_agrees(CpuAttention(4), steps, heads=6, kv_heads=2, seed=seed)


def test_the_cache_keeps_the_dtype_of_the_model() -> None:
    backend = CpuAttention()
    backend.allocate(
        layers=2, blocks=3, kv_heads=2, head_dim=8, dtype=torch.bfloat16, device=torch.device("cpu")
    )
    key = torch.randn(1, 2, 8).bfloat16()
    output = backend.attend(
        1, torch.randn(1, 4, 8).bfloat16(), key, key, backend.plan([Piece(1, 0, [2])]), 1.0
    )
    # A first token sees itself alone: its value comes back, for the heads that share it.
    assert torch.equal(output, key.repeat_interleave(2, dim=1))
