"""Attention within segments on devices that are not here: an NPU by its stand-in, CUDA by one of varlen_attn."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from npu_operators import TorchNpu

from sightline.hardware.operators.attention import varlen

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forget_trials() -> Iterator[None]:
    varlen._operator.cache_clear()
    yield
    varlen._operator.cache_clear()


def drawn(
    tokens: int, heads: int = 3, size: int = 80, dtype: torch.dtype = torch.float16
) -> list[torch.Tensor]:
    return [torch.randn(heads, tokens, size).to(dtype).transpose(0, 1) for _ in range(3)]


def plain(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: list[int], scale: float
) -> torch.Tensor:
    return torch.cat(
        [varlen._plain(query[a:b], key[a:b], value[a:b], scale) for a, b in itertools.pairwise(bounds)]
    )


def test_a_device_without_an_operator_says_so() -> None:
    assert varlen.varlen(*drawn(5), torch.tensor([0, 5]), 0.2) is None


def test_npu_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    module = TorchNpu()
    monkeypatch.setitem(sys.modules, "torch_npu", module)  # type: ignore[arg-type]
    operator = varlen._tried("npu_fusion_attention", varlen._npu, CPU, torch.float16, 80)
    assert operator is varlen._npu
    tensors = drawn(40)
    # An empty segment is nobody's, and the operator's lengths must grow.
    bounds = torch.tensor([0, 7, 7, 39, 40], dtype=torch.int32)
    given = operator(*tensors, bounds, 0.2)
    assert given is not None
    torch.testing.assert_close(given, plain(*tensors, bounds.tolist(), 0.2), rtol=0, atol=2e-3)
    assert module.calls[-1] == ("fusion", {"ends": (7, 39, 40), "scale": 0.2})
    many = torch.arange(2050)
    assert operator(*drawn(2049, 1, 16), many, 0.2) is None


def test_an_operator_that_is_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    module = TorchNpu()
    module.npu_fusion_attention = lambda query, *_, **__: (query,)  # type: ignore[method-assign, assignment]
    monkeypatch.setitem(sys.modules, "torch_npu", module)  # type: ignore[arg-type]
    assert varlen._tried("npu_fusion_attention", varlen._npu, CPU, torch.float16, 80) is None


def test_flash_gets_what_its_signature_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    flash = pytest.importorskip("torch.nn.attention.varlen")
    calls: list[Any] = []

    def operator(query: torch.Tensor, key: Any, value: Any, *bounds: Any, **options: Any) -> Any:
        cu_query, cu_key, *longest = bounds
        calls.append((*longest, options))
        assert cu_query.dtype == cu_key.dtype == torch.int32
        return plain(query, key, value, cu_query.tolist(), options["scale"])

    monkeypatch.setattr(flash, "varlen_attn", operator)
    assert varlen._tried("varlen_attn", varlen._flash, CPU, torch.bfloat16, 80) is varlen._flash
    assert calls[0] == (32, 32, {"scale": 0.1, "enable_gqa": False})
    tensors = drawn(12, 2, 16, torch.float32)
    bounds = torch.tensor([0, 5, 12], dtype=torch.int32)
    varlen.causal_varlen(tensors[0], *(t[:, :1] for t in tensors[1:]), bounds, bounds, 7, 7, 0.2)
    assert calls[-1] == (7, 7, {"scale": 0.2, "window_size": (-1, 0), "enable_gqa": True})


def test_the_arguments_are_those_of_the_installed_torch() -> None:
    flash = pytest.importorskip("torch.nn.attention.varlen")
    arguments = inspect.signature(flash.varlen_attn).parameters
    assert list(arguments)[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert {"scale", "window_size", "enable_gqa"} <= set(arguments)


def test_a_tensor_of_ends_is_read_once() -> None:
    bounds = torch.tensor([0, 3, 3, 8])
    assert varlen.segment_ends(bounds) == (3, 8)
    bounds[-1] = 9  # not read again: the documentation forbids it, and a device would have to be waited for
    assert varlen.segment_ends(bounds) == (3, 8)
    assert varlen.segment_ends(bounds.clone()) == (3, 9)
