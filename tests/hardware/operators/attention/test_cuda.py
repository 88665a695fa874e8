"""CudaAttention without a GPU: its plans and its plain forms against the reference, its kernels by stand-ins.

The Triton kernel itself runs in Triton's interpreter in test_paged_decode.py.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paged_steps import BLOCKS, assert_agrees, random_steps

from sightline.hardware.operators import attention
from sightline.hardware.operators.attention import cuda, varlen
from sightline.hardware.operators.attention.cuda import CudaAttention, DecodeBuffers, plain_decode
from sightline.hardware.operators.attention.paged import Piece
from sightline.hardware.operators.attention.reference import ReferenceAttention

CPU = torch.device("cpu")


def packed_prompt(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_query: torch.Tensor,
    cu_key: torch.Tensor,
    longest_query: int,
    longest_key: int,
    scale: float,
) -> torch.Tensor:
    """What causal_varlen promises, from its own arguments alone."""
    assert cu_query.dtype == cu_key.dtype == torch.int32
    queries, ends = cu_query.tolist(), cu_key.tolist()
    assert (queries[0], queries[-1], ends[0], ends[-1]) == (0, len(query), 0, len(key))
    assert longest_query == max(b - a for a, b in itertools.pairwise(queries))
    assert longest_key == max(b - a for a, b in itertools.pairwise(ends))
    pieces = [
        Piece(b - a, d - c - (b - a), [])
        for a, b, c, d in zip(queries, queries[1:], ends, ends[1:], strict=False)
    ]
    return cuda.plain_prompt(query, key, value, pieces, scale)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 10**6),
    st.sampled_from([1, 4, 16]),
    st.sampled_from([(4, 4), (6, 2), (3, 1)]),
    st.booleans(),
)
def test_agrees_with_the_reference(seed: int, block_size: int, heads: tuple[int, int], packed: bool) -> None:
    backend = CudaAttention(block_size, prompt=packed_prompt if packed else None)
    steps = random_steps(seed, block_size, longest=60 if block_size > 1 else 12)
    assert_agrees(backend, steps, heads=heads[0], kv_heads=heads[1], seed=seed)


def test_a_step_of_single_tokens_calls_the_decode_kernel_alone() -> None:
    calls = []

    def decode(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        return plain_decode(*arguments)

    backend = CudaAttention(4, decode=decode)
    steps = [[Piece(9, 0, [3, 1, 7])], [Piece(1, 9, [3, 1, 7]), Piece(1, 4, [3, 0])]]
    assert_agrees(backend, steps)
    assert len(calls) == 2  # the second step, in each of two layers
    _, keys, _, tables, lengths, scale = calls[0]
    assert keys.shape == (BLOCKS + 1, 4, 2, 16)
    assert tables.tolist() == [[3, 1, 7], [3, 0, 0]]
    assert tables.dtype == lengths.dtype == torch.int32
    assert (lengths.tolist(), scale) == ([10, 5], 0.3)


def test_drafts_are_rows_of_a_decode() -> None:
    plan = CudaAttention(4).plan([Piece(3, 2, [5, 6])])
    assert plan.rows == 3
    assert plan.arrays["lengths"].tolist() == [3, 4, 5]
    assert plan.arrays["tables"].tolist() == [[5, 6]] * 3


def test_a_prompt_without_context_gathers_nothing() -> None:
    plan = CudaAttention(4).plan([Piece(20, 0, list(range(5)))])
    assert "gather" not in plan.arrays
    assert "gather" in CudaAttention(4).plan([Piece(20, 1, list(range(6)))]).arrays


def test_buffers_give_the_rows_of_a_step_and_padding_writes_nobodys_block() -> None:
    backend = CudaAttention(4, decode=plain_decode)
    backend.allocate(layers=1, blocks=10, kv_heads=1, head_dim=8, dtype=torch.float32, device=CPU)
    reference = ReferenceAttention(4)
    reference.allocate(layers=1, blocks=10, kv_heads=1, head_dim=8, dtype=torch.float32, device=CPU)
    buffers = DecodeBuffers(backend, rows=6, width=4)
    plan = buffers.plan(4)  # made once, as a graph's is
    tables, context = [[9, 2, 5, 0], [7, 1, 3, 8]], [3, 0]
    for step in range(9):
        pieces = [Piece(1, done + step, table) for done, table in zip(context, tables, strict=True)]
        query, key, value = torch.randn(4, 2, 8), torch.randn(4, 1, 8), torch.randn(4, 1, 8)
        buffers.fill(pieces, 4)
        given = backend.attend(0, query, key, value, plan, 0.3)[:2]
        expected = reference.attend(0, query[:2], key[:2], value[:2], reference.plan(pieces), 0.3)
        torch.testing.assert_close(given, expected)
    torch.testing.assert_close(backend.keys[0][:-1].flatten(0, 1), reference.keys[0])


def test_a_cache_over_several_devices_cannot_be_captured() -> None:
    backend = CudaAttention(4, decode=plain_decode)
    shape = {"blocks": 2, "kv_heads": 1, "head_dim": 8, "dtype": torch.float32}
    backend.allocate(layers=2, **shape, device=CPU)
    assert backend.capturable
    backend.allocate(layers=2, **shape, device=[CPU, torch.device("meta")])
    assert not backend.capturable
    assert not CudaAttention(4).capturable


def test_flash_is_asked_only_for_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)

    class Module:
        capability = (8, 0)

        def get_device_capability(self, device: torch.device) -> tuple[int, int]:
            return self.capability

    module = Module()
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    assert varlen.flash_takes(device, torch.bfloat16, 80) == hasattr(torch.nn.attention, "varlen")
    assert not varlen.flash_takes(device, torch.float32, 80)
    assert not varlen.flash_takes(device, torch.bfloat16, 84)
    assert not varlen.flash_takes(device, torch.bfloat16, 264)
    assert not varlen.flash_takes(CPU, torch.bfloat16, 80)
    module.capability = (7, 5)
    assert not varlen.flash_takes(device, torch.bfloat16, 80)


def test_choose_takes_what_proves_right(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A prompt kernel that aligns the mask to the first query, as some do, is found out and not used."""

    def top_left(query: Any, key: Any, value: Any, *rest: Any) -> torch.Tensor:
        pieces = [Piece(length, 0, []) for length in rest[0].diff().tolist()]
        firsts = [slice(a, a + piece.length) for a, piece in zip(rest[1].tolist(), pieces, strict=False)]
        cut_key, cut_value = (torch.cat([tensor[at] for at in firsts]) for tensor in (key, value))
        return cuda.plain_prompt(query, cut_key, cut_value, pieces, rest[-1])

    monkeypatch.setattr(varlen, "flash_takes", lambda *_: True)
    monkeypatch.setattr(varlen, "causal_varlen", top_left)
    chosen = attention._on_cuda(CPU, torch.float32, 16, 4, 2, None)
    assert isinstance(chosen, CudaAttention)
    assert chosen._prompt is None
    monkeypatch.setattr(varlen, "causal_varlen", packed_prompt)
    chosen = attention._on_cuda(CPU, torch.float32, 16, 4, 2, 32)
    assert isinstance(chosen, CudaAttention)
    assert chosen._prompt is packed_prompt
    assert chosen.block_size == 32


def test_the_reference_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_ATTENTION", "reference")
    chosen = attention.choose(torch.device("cuda", 0), torch.bfloat16, 128, block_size=8)
    assert isinstance(chosen, ReferenceAttention)
    assert chosen.block_size == 8
