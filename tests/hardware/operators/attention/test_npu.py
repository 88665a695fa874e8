"""NpuAttention beside the reference, with a stand-in that checks every argument against torch_npu's pages."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from npu_operators import TorchNpu
from paged_steps import assert_agrees, random_steps

from sightline.errors import SightlineError, UsageError
from sightline.hardware.operators import attention
from sightline.hardware.operators.attention import npu
from sightline.hardware.operators.attention.npu import NpuAttention
from sightline.hardware.operators.attention.paged import Piece
from sightline.hardware.operators.attention.reference import ReferenceAttention

CPU = torch.device("cpu")


@pytest.fixture
def torch_npu(monkeypatch: pytest.MonkeyPatch) -> TorchNpu:
    module = TorchNpu()
    monkeypatch.setitem(sys.modules, "torch_npu", module)  # type: ignore[arg-type]
    return module


def allocated(blocks: int = 8) -> NpuAttention:
    backend = NpuAttention()
    backend.allocate(layers=1, blocks=blocks, kv_heads=2, head_dim=16, dtype=torch.bfloat16, device=CPU)
    return backend


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2)])
def test_agrees_with_the_reference(torch_npu: TorchNpu, seed: int, heads: int, kv_heads: int) -> None:
    steps = random_steps(seed, 128, longest=300)
    shape: Any = {"heads": heads, "kv_heads": kv_heads, "seed": seed}
    # Both round their result to half precision; the stand-in computes in float32 as the reference does.
    assert_agrees(NpuAttention(), steps, **shape, dtype=torch.float16, tolerance=2e-3)
    assert_agrees(NpuAttention(), steps, **shape, dtype=torch.bfloat16, tolerance=2e-2)
    assert {name for name, _ in torch_npu.calls} == {"scatter", "attention"}
    assert {given["scale"] for name, given in torch_npu.calls if name == "attention"} == {0.3}


def test_decodes_share_a_call_and_prompts_of_one_length_too() -> None:
    backend = NpuAttention()
    backend.blocks = 50
    pieces = [
        Piece(1, 200, [3, 5]),
        Piece(1, 9, [7]),
        Piece(60, 100, [8, 9]),
        Piece(60, 0, [1]),
        Piece(7, 0, [2]),
    ]
    plan = backend.plan(pieces)
    assert [(call.start, call.batch, call.length) for call in plan.calls] == [
        (0, 2, 1),
        (2, 2, 60),
        (122, 1, 7),
    ]
    assert [call.ends for call in plan.calls] == [[201, 10], [160, 60], [7]]
    assert plan.arrays["tables0"].tolist() == [[3, 5], [7, 0]]


def test_a_call_never_has_more_blocks_than_the_cache(torch_npu: TorchNpu) -> None:
    """Sequences that share a prefix count it once each, which the operator's page forbids to pass the cache."""
    backend = allocated(blocks=8)
    prefix = [0, 1, 2]
    pieces = [Piece(1, 3 * 128 + 5, [*prefix, 3 + index]) for index in range(5)]
    plan = backend.plan(pieces)
    assert [call.batch for call in plan.calls] == [2, 2, 1]
    query = torch.randn(5, 4, 16, dtype=torch.bfloat16)
    new = torch.randn(5, 2, 16, dtype=torch.bfloat16)
    assert backend.attend(0, query, new, new, plan, 0.25).shape == query.shape


def test_without_the_fused_scatter_rows_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    module = TorchNpu(scatter=False)
    monkeypatch.setitem(sys.modules, "torch_npu", module)  # type: ignore[arg-type]
    assert_agrees(NpuAttention(), random_steps(1, 128), dtype=torch.float16, tolerance=2e-3)
    assert {name for name, _ in module.calls} == {"attention"}


def test_a_scatter_that_lays_rows_elsewhere_is_not_used(torch_npu: TorchNpu) -> None:
    """As a version does that takes every cache for the NZ format."""

    def as_nz(key: Any, value: Any, keys: torch.Tensor, values: torch.Tensor, slots: torch.Tensor) -> None:
        keys.transpose(1, 2).flatten(0, 1).reshape(-1)[: key.numel()] = key.flatten()

    torch_npu.npu_scatter_pa_kv_cache = as_nz
    assert allocated()._write is npu._copy


def test_the_scatter_is_told_the_layout_where_it_can_be(
    torch_npu: TorchNpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []
    plain = torch_npu._scatter

    def scatter(*tensors: torch.Tensor, **options: Any) -> None:
        given.append(options)
        plain(*tensors)

    torch_npu.npu_scatter_pa_kv_cache = scatter
    assert allocated()._write is npu._scatter
    assert given == [{}]
    default = SimpleNamespace(_schema="npu_scatter_pa_kv_cache(..., str? cache_mode=None)")
    operators = SimpleNamespace(npu_scatter_pa_kv_cache=SimpleNamespace(default=default))
    monkeypatch.setattr(torch.ops, "npu", operators, raising=False)
    assert allocated()._write is npu._scatter
    assert given[1:] == [{"cache_mode": "Norm"}]


def test_a_cache_beyond_the_operators_reach_is_refused(torch_npu: TorchNpu) -> None:
    with pytest.raises(SightlineError, match="at most 524287 blocks"):
        allocated(blocks=2**20)


@pytest.mark.parametrize("size", [16, 64, 130, 640])
def test_block_sizes_that_prompts_cannot_have_are_refused(size: int) -> None:
    with pytest.raises(UsageError, match="use 128"):
        NpuAttention(size)


def test_choose_falls_back_to_the_reference(torch_npu: TorchNpu, caplog: pytest.LogCaptureFixture) -> None:
    def chosen(dtype: torch.dtype, head_dim: int) -> Any:
        return attention._on_npu(CPU, dtype, head_dim, 4, 2, None)

    assert isinstance(chosen(torch.float16, 64), NpuAttention)
    assert not caplog.records
    assert isinstance(chosen(torch.float32, 64), ReferenceAttention)
    assert isinstance(chosen(torch.float16, 72), ReferenceAttention)

    def wrong(*tensors: torch.Tensor, **given: Any) -> Any:
        return torch.zeros_like(tensors[0]), None

    torch_npu.npu_fused_infer_attention_score = wrong  # type: ignore[method-assign]
    fallback = chosen(torch.float16, 64)
    assert isinstance(fallback, ReferenceAttention)
    assert fallback.block_size == 128
    assert "without its fused operators" in caplog.text
