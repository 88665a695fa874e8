"""What all backends share, and the reference against torch's attention over whole sequences."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import SightlineError, UsageError
from sightline.hardware.operators.attention.npu import NpuAttention
from sightline.hardware.operators.attention.paged import (
    Piece,
    Plan,
    cumulative,
    packed_slots,
    padded_tables,
    runs,
    slots,
    used_blocks,
)
from sightline.hardware.operators.attention.reference import ReferenceAttention


@given(st.integers(1, 9), st.integers(0, 40), st.integers(1, 40), st.randoms())
def test_slots_are_block_and_place(size: int, context: int, length: int, draw: random.Random) -> None:
    table = draw.sample(range(200), -(-(context + length) // size) + draw.randint(0, 2))
    expected = [table[at // size] * size + at % size for at in range(context, context + length)]
    piece = Piece(length, context, table)
    assert slots(piece, size).tolist() == expected
    assert packed_slots([piece, piece], size).tolist() == expected * 2
    assert used_blocks(piece, size) == (context + length - 1) // size + 1


@given(st.integers(1, 7), st.lists(st.integers(0, 12), max_size=12), st.data())
def test_runs_cover_a_table_and_join_neighbours(size: int, table: list[int], data: st.DataObject) -> None:
    tokens = data.draw(st.integers(0, len(table) * size))
    joined = runs(table, tokens, size)
    covered = [first + i for first, count in joined for i in range(count)]
    assert covered == [table[at // size] * size + at % size for at in range(tokens)]
    assert all(first + count != after for (first, count), (after, _) in itertools.pairwise(joined))


def test_cumulative_lengths_and_padded_tables() -> None:
    assert cumulative([3, 1, 5]).tolist() == [0, 3, 4, 9]
    assert cumulative([3]).dtype == np.int32
    pieces = [Piece(1, 3, [5, 6, 7]), Piece(4, 3, [8, 9])]
    assert padded_tables(pieces, 4, fill=-1).tolist() == [[5, -1], [8, 9]]


def test_a_plan_travels_once() -> None:
    plan = Plan([], 2, {"slots": np.array([3, 70000]), "tables": np.array([[1, 2], [3, 4]])})
    device = torch.device("cpu")
    given = plan.on(device)
    assert given["slots"].dtype == torch.int64
    assert given["slots"].tolist() == [3, 70000]
    assert given["tables"].dtype == torch.int32
    assert given["tables"].tolist() == [[1, 2], [3, 4]]
    assert plan.on(device) is given


@pytest.mark.parametrize("piece", [Piece(2, 3, [0]), Piece(0, 1, [0]), Piece(1, 4, [7])])
def test_a_table_that_is_too_short_is_refused(piece: Piece) -> None:
    with pytest.raises(SightlineError, match="piece 1 of the step"):
        ReferenceAttention(4).plan([Piece(1, 0, [0]), piece])


def test_block_sizes_are_checked() -> None:
    assert ReferenceAttention().block_size == 16
    with pytest.raises(UsageError, match="use 16"):
        ReferenceAttention(0)
    with pytest.raises(UsageError, match="block size 16 does not suit NpuAttention; use 128"):
        NpuAttention(16)


def test_bytes_of_a_block() -> None:
    given = ReferenceAttention(16).bytes_per_block(layers=28, kv_heads=2, head_dim=128, dtype=torch.bfloat16)
    assert given == 2 * 28 * 16 * 2 * 128 * 2


@pytest.mark.parametrize("cuts", [(29,), (1, 28), (8, 13, 1, 7), (1,) * 29])
def test_the_reference_is_causal_attention_however_a_prompt_is_cut(cuts: tuple[int, ...]) -> None:
    reference = ReferenceAttention(4)
    reference.allocate(
        layers=1, blocks=20, kv_heads=2, head_dim=8, dtype=torch.float32, device=torch.device("cpu")
    )
    query, key, value = torch.randn(29, 6, 8), torch.randn(29, 2, 8), torch.randn(29, 2, 8)
    table = random.Random(1).sample(range(20), 8)
    mixed, start = [], 0
    for length in cuts:
        at = slice(start, start + length)
        plan = reference.plan([Piece(length, start, table)])
        mixed.append(reference.attend(0, query[at], key[at], value[at], plan, 0.7))
        start += length
    whole = torch.nn.functional.scaled_dot_product_attention(
        *(tensor.transpose(0, 1)[None] for tensor in (query, key, value)),
        is_causal=True,
        scale=0.7,
        enable_gqa=True,
    )
    torch.testing.assert_close(torch.cat(mixed), whole[0].transpose(0, 1))


def test_layers_may_lie_on_devices_of_their_own() -> None:
    reference = ReferenceAttention(4)
    devices = [torch.device("cpu"), torch.device("meta")]
    reference.allocate(layers=2, blocks=3, kv_heads=1, head_dim=8, dtype=torch.float32, device=devices)
    assert [keys.device.type for keys in reference.keys] == ["cpu", "meta"]


def test_only_a_pinned_copy_goes_on_behind_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is not pinned may be another's before the device has read it."""
    waits = []
    copied = torch.Tensor.to

    def to(tensor: torch.Tensor, device: torch.device, *, non_blocking: bool = False) -> torch.Tensor:
        waits.append(not non_blocking)
        return copied(tensor, device)

    monkeypatch.setattr(torch.Tensor, "to", to)
    Plan([], 2, {"tables": np.arange(2)}).on(torch.device("meta"))
    assert waits == [True]
