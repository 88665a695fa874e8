"""The rotary embedding against complex numbers, in both modes and orders, and its form for NPUs."""

from __future__ import annotations

import pytest
import torch
from npu_dense_operators import DenseTorchNpu

from sightline.errors import UsageError
from sightline.hardware.operators.rotary import rotary_position_embedding

MODES = ("rotated_half", "rotated_interleaved")


def angles(tokens: int, width: int, mode: str) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin over the full width: each angle twice, beside itself or half a width further."""
    turns = torch.outer(torch.arange(tokens), 100.0 ** -torch.linspace(0, 1, width // 2))
    full = turns.repeat_interleave(2, -1) if mode == "rotated_interleaved" else torch.cat([turns, turns], -1)
    return full.cos(), full.sin()


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mode: str) -> torch.Tensor:
    """x [B, S, N, D] times e^(i angle), in float64."""
    x = x.double()
    if mode == "rotated_interleaved":
        numbers = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        product = numbers * torch.complex(cos.double(), sin.double())[:, None, ::2]
        return torch.view_as_real(product).flatten(-2)
    half = x.shape[-1] // 2
    numbers = torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous())
    product = numbers * torch.complex(cos.double(), sin.double())[:, None, :half]
    return torch.cat([product.real, product.imag], -1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1.6e-2)])
def test_it_turns_pairs_as_complex_numbers(mode: str, dtype: torch.dtype, tolerance: float) -> None:
    x = torch.randn(2, 7, 3, 16).to(dtype)
    cos, sin = angles(7, 16, mode)
    expected = turned(x, cos, sin, mode)
    given = rotary_position_embedding(x, cos, sin, mode)
    assert given.dtype == dtype
    torch.testing.assert_close(given.double(), expected, rtol=tolerance, atol=tolerance)
    first = rotary_position_embedding(x.transpose(1, 2), cos, sin, rotated_mode=mode, head_first=True)
    assert torch.equal(first.transpose(1, 2), given)
    by_token = rotary_position_embedding(
        x.transpose(0, 1), cos[:, None, None], sin[:, None, None], mode
    )  # SBND
    assert torch.equal(by_token.transpose(0, 1), given)


def test_it_computes_in_the_dtype_of_the_angles() -> None:
    x = torch.randn(1, 50, 2, 32).bfloat16()
    cos, sin = angles(50, 32, "rotated_half")
    expected = turned(x, cos, sin, "rotated_half")
    wide = rotary_position_embedding(x, cos, sin)
    assert torch.equal(wide, expected.to(torch.bfloat16))  # one rounding, at the end
    narrow = rotary_position_embedding(x, cos.bfloat16(), sin.bfloat16())
    assert not torch.equal(narrow, wide)
    # However wide x is.
    assert torch.equal(rotary_position_embedding(x.float(), cos.bfloat16(), sin.bfloat16()), narrow.float())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1.6e-2)])
@pytest.mark.parametrize("head_first", [False, True])
def test_the_npu_has_one_operator_for_it(
    torch_npu: DenseTorchNpu, mode: str, dtype: torch.dtype, tolerance: float, head_first: bool
) -> None:
    x = torch.randn(2, 7, 3, 16).to(dtype)
    x = x.transpose(1, 2) if head_first else x
    cos, sin = (part.to(dtype) for part in angles(7, 16, mode))
    given = rotary_position_embedding(x, cos, sin, mode, head_first)
    assert {name for name, _ in torch_npu.calls} == {"rotary"}
    calls = len(torch_npu.calls)
    expected = rotary_position_embedding(x, cos, sin, mode, head_first, fused=False)
    assert len(torch_npu.calls) == calls
    torch.testing.assert_close(given, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("shape", "spans", "mode", "documented"),
    [
        ((2, 7, 3, 16), (2, 7, 1, 16), "rotated_half", True),  # angles of each sample
        ((2, 7, 3, 16), (2, 7, 1, 16), "rotated_interleaved", False),
        ((2, 7, 3, 16), (1, 7, 3, 16), "rotated_half", False),  # angles of each head
        ((2, 7, 3, 16), (2, 7, 3, 16), "rotated_half", True),
        ((1, 4, 2, 896), (1, 4, 1, 896), "rotated_half", False),
        ((20, 4, 50, 4), (1, 4, 1, 4), "rotated_interleaved", False),  # B * N < 1000
        ((20, 4, 50, 4), (1, 4, 1, 4), "rotated_half", True),
    ],
)
def test_the_npu_operator_gets_only_what_its_page_allows(
    torch_npu: DenseTorchNpu, shape: tuple[int, ...], spans: tuple[int, ...], mode: str, documented: bool
) -> None:
    x, turns = torch.randn(shape), torch.randn(spans)
    rotary_position_embedding(x, turns.cos(), turns.sin(), mode)  # the trial too
    torch_npu.calls.clear()
    given = rotary_position_embedding(x, turns.cos(), turns.sin(), mode)
    assert bool(torch_npu.calls) == documented
    expected = rotary_position_embedding(x, turns.cos(), turns.sin(), mode, fused=False)
    torch.testing.assert_close(given, expected, rtol=1e-6, atol=1e-6)


def test_a_fused_form_traces_as_one_graph(compiled: list[str]) -> None:
    x = torch.randn(2, 7, 3, 16)
    for mode in MODES:
        cos, sin = angles(7, 16, mode)
        expected = rotary_position_embedding(x, cos, sin, mode, fused=False)
        torch.testing.assert_close(rotary_position_embedding(x, cos, sin, mode), expected)
    assert compiled == ["_plain"] * 2, "for each mode"


@pytest.mark.parametrize(
    ("x", "cos", "sin", "mode", "said"),
    [
        ((1, 4, 2, 8), (4, 8), (4, 8), "half", "rotated_half or rotated_interleaved"),
        ((1, 4, 2, 8), (4, 4), (4, 4), "rotated_half", "full width D"),
        ((1, 4, 2, 8), (2, 8), (2, 8), "rotated_half", "full width D"),
        ((1, 4, 2, 8), (4, 8), (1, 8), "rotated_half", "alike"),
        ((4, 2, 8), (4, 8), (4, 8), "rotated_half", "four dimensions"),
        ((1, 4, 2, 7), (4, 7), (4, 7), "rotated_half", "even"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    x: tuple[int, ...], cos: tuple[int, ...], sin: tuple[int, ...], mode: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        rotary_position_embedding(torch.zeros(x), torch.zeros(cos), torch.zeros(sin), mode)
