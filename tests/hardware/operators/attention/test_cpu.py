"""CpuAttention against the definition: every form it takes, on fresh random inputs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_steps import assert_agrees, random_steps

from sightline.hardware.operators.attention import cpu, cpu_plan
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
        patch.setattr(cpu, "_COPIED_BELOW", fused_below)
        patch.setattr(cpu, "_SCORES", fused_below)
        patch.setattr(cpu, "_LEAST_ROWS", 5)
        assert_agrees(CpuAttention(block_size), steps, heads=heads[0], kv_heads=heads[1], seed=seed)


def test_a_chunk_behind_blocks_in_two_places() -> None:
    steps = [[Piece(9, 0, [3, 1, 7])], [Piece(5, 9, [3, 1, 7, 0])], [Piece(1, 14, [3, 1, 7, 0])]]
    assert_agrees(CpuAttention(4), steps)


def test_neighbouring_blocks_are_one_run() -> None:
    plan = CpuAttention(4).plan([Piece(1, 9, [5, 6, 7]), Piece(3, 8, [1, 3, 4])])
    assert [(batch.rows, batch.parts[0]) for batch in plan.batches] == [(slice(0, 1), [(20, 10)])]
    assert plan.chunks == [(slice(1, 4), [(4, 4), (12, 4)])]


def test_sequences_at_equal_distances_are_one_batch() -> None:
    alike = [Piece(1, 9, [0, 2, 3]), Piece(1, 8, [0, 5, 6]), Piece(1, 10, [0, 8, 9])]  # one shared block
    others = [Piece(1, 9, [0, 10, 12]), Piece(1, 9, [11, 13, 14]), Piece(1, 150, list(range(20, 60)))]
    batches = CpuAttention(4).plan(alike + others).batches
    assert [batch.rows for batch in batches] == [slice(0, 3), slice(3, 4), slice(4, 5), slice(5, 6)]
    first = batches[0]
    # Short behind a shared block, the second run is copied as a whole; what is filled up is a sequence's own last one.
    assert (first.runs, first.distances) == ([(0, 4)], [0, 12])
    assert first.rest is not None
    assert first.unseen is not None
    assert first.rest.tolist() == [
        8,
        9,
        10,
        11,
        12,
        13,
        13,
        20,
        21,
        22,
        23,
        24,
        24,
        24,
        32,
        33,
        34,
        35,
        36,
        37,
        38,
    ]
    assert (~first.unseen[:, 0]).sum(1).tolist() == [6, 5, 7]


def test_of_one_run_only_what_is_beyond_the_shortest_is_copied() -> None:
    pieces = [Piece(1, 8, [0, 1, 2]), Piece(1, 7, [4, 5, 6]), Piece(1, 9, [8, 9, 10])]
    (batch,) = CpuAttention(4).plan(pieces).batches
    assert (batch.runs, batch.distances) == ([(0, 8)], [16])
    assert batch.rest is not None
    assert batch.rest.tolist() == [8, 8, 23, 23, 40, 41]


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(4, 14), min_size=2, max_size=4),
    st.integers(0, 1),
    st.sampled_from([10, 128]),
)
def test_batches_agree_with_the_reference(seed: int, lengths: list[int], shared: int, rest: int) -> None:
    blocks, own = 4, range(shared + 1, 100)
    tables = [
        [*range(shared), *own[index * (blocks + 1) : index * (blocks + 1) + blocks - shared]]
        for index in range(len(lengths))
    ]
    pairs = list(zip(lengths, tables, strict=True))
    steps = [[Piece(length, 0, table)] for length, table in pairs]
    decode = [Piece(1, length, table) for length, table in pairs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_plan, "_MOST_REST", rest)
        assert_agrees(CpuAttention(4), [*steps, decode], heads=6, kv_heads=2, seed=seed)
        assert len(CpuAttention(4).plan(decode).batches) == 1


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
