"""attention_forward_varlen against a loop over rows, and its forms for NPUs and CUDA."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from npu_dense_operators import DenseTorchNpu

from sightline.errors import UsageError
from sightline.hardware.operators.dense_attention import attention_forward_varlen, varlen

QUERIES, KEYS = (0, 7, 8, 8, 20), (0, 9, 12, 14, 30)
DTYPES = [(torch.float32, 2e-6), (torch.bfloat16, 2.5e-2)]


def drawn(
    dtype: torch.dtype, kv_heads: int = 4, size: int = 16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(20, 4, size), (30, kv_heads, size), (30, kv_heads, size)]
    q, k, v = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v


def in_float64(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    queries: tuple[int, ...] = QUERIES,
    keys: tuple[int, ...] = KEYS,
    causal: bool = False,
    scale: float = 0.25,
) -> torch.Tensor:
    result = torch.zeros(q.shape, dtype=torch.float64)
    group = q.shape[1] // k.shape[1]
    for a, b, c, d in zip(queries, queries[1:], keys, keys[1:], strict=False):
        for row in range(a, b):
            end = d - (b - 1 - row) if causal else d
            for head in range(q.shape[1]):
                if end > c:
                    weights = (k[c:end, head // group].double() @ q[row, head].double() * scale).softmax(0)
                    result[row, head] = weights @ v[c:end, head // group].double()
    return result


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_each_segment_attends_to_its_own_keys(
    dtype: torch.dtype, tolerance: float, kv_heads: int, causal: bool, fused: bool
) -> None:
    tensors = drawn(dtype, kv_heads)
    expected = in_float64(*tensors, causal=causal)
    for bounds in ((QUERIES, KEYS), (torch.tensor(QUERIES), torch.tensor(KEYS, dtype=torch.int32))):
        given = attention_forward_varlen(*tensors, *bounds, causal=causal, fused=fused)
        assert given.dtype == dtype
        torch.testing.assert_close(given.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("fused", [False, True])
def test_queries_that_see_nothing_are_zero(fused: bool) -> None:
    tensors = drawn(torch.float32)
    longer, shorter = (0, 12, 15, 20), (0, 5, 5, 30)  # more queries than keys; no keys at all
    for causal in (False, True):
        given = attention_forward_varlen(*tensors, longer, shorter, causal=causal, fused=fused)
        expected = in_float64(*tensors, longer, shorter, causal=causal)
        torch.testing.assert_close(given.double(), expected, rtol=0, atol=2e-6)
        assert (given[12:15] == 0).all()
        assert bool((given[:7] == 0).all()) == causal


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("causal", [False, True])
def test_the_npu_packs_segments_into_one_call(
    torch_npu: DenseTorchNpu, dtype: torch.dtype, tolerance: float, causal: bool
) -> None:
    tensors = drawn(dtype, 2)
    queries, keys = (0, 7, 8, 20), (0, 9, 12, 30)
    given = attention_forward_varlen(*tensors, queries, keys, softmax_scale=0.3, causal=causal)
    expected = in_float64(*tensors, queries, keys, causal, 0.3)
    torch.testing.assert_close(given.double(), expected, rtol=0, atol=tolerance)
    assert set(torch_npu.calls) == {("fused_attn_score", "TND")}
    torch_npu.calls.clear()
    attention_forward_varlen(*tensors, queries, keys, causal=causal)
    assert len(torch_npu.calls) == 1, "tried once"
    # Rows that see nothing are not for the operator.
    blind = attention_forward_varlen(*tensors, (0, 12, 20), (0, 5, 30), causal=True)
    expected = in_float64(*tensors, (0, 12, 20), (0, 5, 30), True)
    torch.testing.assert_close(blind.double(), expected, rtol=0, atol=tolerance)
    assert len(torch_npu.calls) == 1


def test_a_wrong_operator_is_not_used_and_a_warning_says_so(
    torch_npu: DenseTorchNpu, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch_npu, "npu_fusion_attention", lambda query, *_, **__: (query,))
    tensors = drawn(torch.bfloat16)
    given = attention_forward_varlen(*tensors, QUERIES, KEYS)
    torch.testing.assert_close(given.double(), in_float64(*tensors), rtol=0, atol=DTYPES[1][1])
    assert "runs segment by segment" in caplog.text


def test_flash_gets_what_its_signature_asks_for(
    pretend: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    flash = pytest.importorskip("torch.nn.attention.varlen")
    arguments = list(inspect.signature(flash.varlen_attn).parameters)
    assert arguments[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    calls: list[tuple[Any, ...]] = []

    def operator(
        q: Any,
        k: Any,
        v: Any,
        cu_q: Any,
        cu_k: Any,
        *longest: int,
        scale: float,
        window_size: Any,
        enable_gqa: bool,
    ) -> Any:
        calls.append((*longest, window_size, enable_gqa))
        assert cu_q.dtype == cu_k.dtype == torch.int32
        causal = window_size == (-1, 0)
        mixed = in_float64(q, k, v, tuple(cu_q.tolist()), tuple(cu_k.tolist()), causal, scale).to(q.dtype)
        return torch.where(mixed == 0, float("nan"), mixed)  # rows without keys stay unwritten

    monkeypatch.setattr(flash, "varlen_attn", operator)
    monkeypatch.setattr(varlen, "flash_takes", lambda *arguments: True)
    pretend("cuda")
    tensors = drawn(torch.bfloat16, 2)
    given = attention_forward_varlen(*tensors, (0, 12, 15, 20), (0, 5, 5, 30), causal=True)
    expected = in_float64(*tensors, (0, 12, 15, 20), (0, 5, 5, 30), True)
    torch.testing.assert_close(given.double(), expected, rtol=0, atol=DTYPES[1][1])
    assert calls[-1] == (12, 25, (-1, 0), True)
    attention_forward_varlen(*tensors, QUERIES, KEYS)
    assert calls[-1] == (12, 16, (-1, -1), True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cu_seqlens_q": (1, 20)}, "cu_seqlens_q .* begin with 0"),
        ({"cu_seqlens_k": (0, 29)}, "end with the number of tokens, 30"),
        ({"cu_seqlens_q": (0, 9, 8, 15, 20)}, "never fall"),
        ({"cu_seqlens_q": (0, 9, 20)}, "2 segments, cu_seqlens_k 4"),
        ({"dropout_p": 0.1}, "no dropout"),
        ({"v": torch.zeros(30, 2, 16)}, "do not fit one another"),
        ({"q": torch.zeros(1, 20, 4, 16)}, "do not fit one another"),
    ],
)
def test_what_does_not_fit_is_one_sentence(options: dict[str, Any], said: str) -> None:
    q, k, v = drawn(torch.float32)
    given = {"q": q, "k": k, "v": v, "cu_seqlens_q": QUERIES, "cu_seqlens_k": KEYS, **options}
    with pytest.raises(UsageError, match=said):
        attention_forward_varlen(**given)
