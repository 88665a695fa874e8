"""CpuAttention against the definition: every form it takes, on fresh random inputs."""

from __future__ import annotations

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_steps import BLOCKS, assert_agrees, random_steps

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


def allocated(block_size: int, blocks: int = 64) -> CpuAttention:
    backend = CpuAttention(block_size)
    backend.allocate(
        layers=1, blocks=blocks, kv_heads=2, head_dim=8, dtype=torch.float32, device=torch.device("cpu")
    )
    return backend


def test_neighbouring_blocks_are_one_run() -> None:
    plan = allocated(4).plan([Piece(1, 9, [5, 6, 7]), Piece(3, 8, [1, 3, 4])])
    assert plan.alone == [(0, [(20, 10)])]
    assert plan.chunks == [(slice(1, 4), [(4, 4), (12, 4)])]
    assert not plan.groups


def test_sequences_that_decode_are_one_group_filled_up_with_their_own_last_tokens() -> None:
    pieces = [Piece(1, 4, [0, 2]), Piece(2, 1, [7]), Piece(1, 2, [5]), Piece(1, 5, [9, 8])]
    plan = allocated(4).plan(pieces)
    (group,) = plan.groups
    assert not plan.alone
    assert group.rows == [0, 3, 4]
    assert group.slots.tolist() == [
        [0, 1, 2, 3, 8, 8],
        [20, 21, 22, 22, 22, 22],
        [36, 37, 38, 39, 32, 33],
    ]
    assert group.unseen is not None
    assert (~group.unseen[:, 0, 0]).sum(1).tolist() == [5, 3, 6]
    assert group.places(2, 256)[:12].tolist() == [0, 1, 2, 3, 8, 8, 256, 257, 258, 259, 264, 264]


def test_neighbours_of_one_length_are_taken_as_they_are() -> None:
    (group,) = allocated(4).plan([Piece(1, 3, [4]), Piece(1, 3, [2])]).groups
    assert group.index == slice(0, 2)
    assert group.unseen is None


def test_long_ones_are_not_filled_up_for_nor_more_copied_than_is_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short, long = Piece(1, 3, [0]), Piece(1, 130, list(range(1, 34)))
    several = [short, long, *[short] * 7, long]
    plan = allocated(4).plan(several)
    assert [group.rows for group in plan.groups] == [list(range(10))]
    monkeypatch.setattr(cpu_plan, "_MOST_FILLED", 130)
    plan = allocated(4).plan(several)
    assert [group.rows for group in plan.groups] == [[0, 1, 9], [2, 3, 4, 5, 6, 7, 8]]
    monkeypatch.setattr(cpu_plan, "_MOST_FILLED", 300)  # two of the short ones, but not three
    assert [group.rows for group in allocated(4).plan(several).groups] == [[0, 1, 2, 9], [3, 4, 5, 6, 7, 8]]
    # 64 bytes a token of the keys: room for 150 tokens, so that a long one goes with no other.
    monkeypatch.setattr(cpu, "_MOST_COPIED", 150 * 64)
    plan = allocated(4).plan(several)
    assert [row for row, _ in plan.alone] == [1, 9]
    assert [group.rows for group in plan.groups] == [[0, 2, 3, 4, 5, 6, 7, 8]]


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 35), min_size=2, max_size=5),
    st.integers(0, 1),
    st.sampled_from([0, 20, 1024]),
    st.sampled_from([40, 1 << 20]),
)
def test_groups_agree_with_the_reference(
    seed: int, lengths: list[int], shared: int, filled: int, copied: int
) -> None:
    """Of any lengths, in blocks at any places, the first one shared or not, between chunks of others."""
    random = Random(seed)
    free = random.sample(range(1, BLOCKS), BLOCKS - 1)
    pieces = []
    for length in lengths:
        first = [0] if shared and length >= 4 else []
        pieces.append((length, first + [free.pop() for _ in range(-(-(length + 1) // 4) - len(first))]))
    decode = [Piece(1, length, table) for length, table in pieces]
    decode.insert(random.randint(0, len(decode)), Piece(3, 0, [free.pop()]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_plan, "_MOST_FILLED", filled)
        patch.setattr(cpu, "_MOST_COPIED", copied * 64)
        steps = [[Piece(length, 0, table)] for length, table in pieces]
        assert_agrees(CpuAttention(4), [*steps, decode], heads=6, kv_heads=2, seed=seed)


def test_groups_in_bfloat16_are_near_the_reference() -> None:
    lengths = [5, 40, 33, 12]
    tables = [list(range(start, start + 11)) for start in range(0, 44, 11)]
    steps = [[Piece(length, 0, table)] for length, table in zip(lengths, tables, strict=True)]
    decode = [Piece(1, length, table) for length, table in zip(lengths, tables, strict=True)]
    assert len(allocated(4).plan(decode).groups) == 1
    assert_agrees(
        CpuAttention(4), [*steps, decode], heads=6, kv_heads=2, dtype=torch.bfloat16, tolerance=0.03
    )


def test_what_other_sequences_left_in_the_cache_is_not_seen() -> None:
    """Not even as nan: it would be in every sum that it has no weight in."""
    backend = allocated(4)
    for cache in (*backend._keys, *backend._values):
        cache.fill_(torch.nan)
    generator = torch.Generator().manual_seed(0)
    for length, table in ((5, [3, 9]), (2, [6])):
        written = torch.randn(length, 2, 8, generator=generator)
        backend.attend(
            0, torch.zeros(length, 4, 8), written, written, backend.plan([Piece(length, 0, table)]), 1
        )
    decode = backend.plan([Piece(1, 5, [3, 9]), Piece(1, 2, [6])])
    new = torch.randn(2, 2, 8, generator=generator)
    assert len(decode.groups) == 1
    assert backend.attend(0, torch.randn(2, 4, 8, generator=generator), new, new, decode, 1).isfinite().all()


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
