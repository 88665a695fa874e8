"""The 8 and 4 bit layers against their definitions in exact arithmetic, on inputs made anew in every run."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sightline.models.quantization import int4, int8
from sightline.models.quantization.int4 import Int4Linear
from sightline.models.quantization.int8 import Int8Linear, quantize_rows
from sightline.models.quantization.weights import dequantize, quantize_int4, unpack_int4, widen

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# One part in 2^(bits of the mantissa), twice: the product is rounded and then scaled.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2 * 2**-8, torch.float16: 2 * 2**-10}


def inputs(rows: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """Activations as models have them: columns far larger than the others, rows of every size, one of zeros."""
    x = torch.randn(rows, width) * torch.rand(rows, 1) * 3
    x[:, torch.randint(width, (2,))] *= 50
    if rows > 2:
        x[rows // 2] = 0
    return x.to(dtype)


def int8_reference(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """The definition, in integers and float64: [rows, K], int8 [N, K], [N, 1], [N] -> float64 [rows, N]."""
    q, largest = quantize_rows(x)
    product = (q.long() - 128) @ weight.long().t()
    result = product.double() * largest.double() * scale.double().t() / 127
    return result if bias is None else result + bias.double()


def assert_near(
    got: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype, bias: torch.Tensor | None
) -> None:
    assert got.dtype == dtype
    # Rounding is relative to the product and to the sum, which a bias may make small.
    room = wanted.abs() + (0 if bias is None else 2 * bias.double().abs()) + 1e-6
    worst = ((got.double() - wanted).abs() / room).max().item() if got.numel() else 0
    assert worst <= ROUNDING[dtype], worst


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [70, 6000])  # few enough for the fewest operations, and not
def test_rows_are_rounded_to_the_nearest_level_of_their_own_scale(dtype: torch.dtype, width: int) -> None:
    x = inputs(9, width, dtype)
    q, largest = quantize_rows(x)
    assert (q.dtype, largest.dtype) == (torch.uint8, dtype)
    assert torch.equal(largest[:, 0], x.abs().amax(1))
    exact = x.double() / largest.double().clamp_min(1e-30) * 127 + 128
    assert (q.double() - exact).abs().max() <= 0.5 + 1e-4
    assert (q[4] == 128).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("rows", "inner", "outer"), [(1, 64, 48), (2, 7, 5), (33, 576, 49), (300, 31, 130)])
def test_int8_equals_its_definition(
    rows: int, inner: int, outer: int, biased: bool, dtype: torch.dtype
) -> None:
    layer = Int8Linear.from_linear(
        torch.randn(outer, inner), torch.randn(outer).to(dtype) if biased else None
    )
    weight, x = layer.plain_weight().clone(), inputs(rows, inner, dtype)
    wanted = int8_reference(x, weight, layer.weight_scale, layer.bias)
    assert_near(layer(x), wanted, dtype, layer.bias)


def test_int8_of_many_rows_is_computed_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "_SLICE_ROWS", 7)
    monkeypatch.setattr(int8, "_SLICE_BYTES", 100)
    layer = Int8Linear.from_linear(torch.randn(24, 40), torch.randn(24))
    weight, x = layer.plain_weight().clone(), inputs(17, 40, torch.float32)
    assert_near(layer(x), int8_reference(x, weight, layer.weight_scale, layer.bias), x.dtype, layer.bias)


def test_a_row_of_int8_does_not_depend_on_its_batch() -> None:
    layer = Int8Linear.from_linear(torch.randn(32, 64), torch.randn(32))
    x = inputs(5, 64, torch.float32)
    assert torch.allclose(layer(x)[3], layer(x[3:4])[0], rtol=1e-5, atol=1e-6)


def test_layers_take_any_leading_shape_and_strides() -> None:
    for layer in (Int8Linear.from_linear(torch.randn(16, 64)), Int4Linear.from_linear(torch.randn(16, 64))):
        x = torch.randn(64, 2, 3).permute(1, 2, 0)
        assert layer(x).shape == (2, 3, 16)
        assert torch.allclose(layer(x), layer(x.contiguous()))
        wide = torch.randn(2, 128)[:, ::2]
        assert torch.allclose(layer(wide), layer(wide.contiguous()))
        assert layer(torch.empty(0, 64)).shape == (0, 16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group", int4.GROUPS)
@pytest.mark.parametrize("outer", [16, 21, 176])
@pytest.mark.parametrize("rows", [1, 3])
def test_int4_of_a_few_rows_equals_its_definition(
    rows: int, outer: int, group: int, dtype: torch.dtype
) -> None:
    layer = Int4Linear.from_linear(torch.randn(outer, 512), torch.randn(outer).to(dtype), group=group)
    weight = dequantize(unpack_int4(layer.plain_weight()), layer.weight_scale, torch.float64)
    x = inputs(rows, 512, dtype)
    wanted = x.double() @ weight.t() + layer.bias.double()  # type: ignore[union-attr]
    # Sums of 512 products in the kernel's own order, weights rounded to bfloat16 in the 16 bit kernels.
    room = x.double().abs() @ weight.abs().t() + layer.bias.double().abs()  # type: ignore[union-attr]
    rounding = 2e-6 if dtype == torch.float32 else 2**-7
    assert ((layer(x).double() - wanted).abs() / room).max() <= rounding


@pytest.mark.skipif(not int8.has_onednn(), reason="no 8 bit product on this CPU")
def test_int4_of_many_rows_is_the_int8_product_of_the_widened_weight() -> None:
    layer = Int4Linear.from_linear(torch.randn(48, 96), torch.randn(48), group=32)
    weight, scale = widen(unpack_int4(layer.plain_weight()), layer.weight_scale)
    x = inputs(11, 96, torch.float32)
    assert_near(layer(x), int8_reference(x, weight, scale, layer.bias), x.dtype, layer.bias)


@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
def test_without_integer_kernels_the_weight_is_made_float_again(
    kind: type[Int8Linear] | type[Int4Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "has_onednn", lambda: False)
    monkeypatch.setattr(int4, "has_onednn", lambda: False)
    weight, bias, x = torch.randn(24, 64), torch.randn(24), inputs(6, 64, torch.float32)
    layer = kind.from_linear(weight, bias).prepare()
    assert type(layer.kernel).__name__ == "FloatKernel"
    assert layer(x).shape == (6, 24)
    if kind is Int8Linear:
        levels = (weight / layer.weight_scale).round()
        assert torch.allclose(layer(x), x @ (levels * layer.weight_scale).t() + bias, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
def test_stacked_layers_answer_side_by_side(kind: type[Int8Linear] | type[Int4Linear]) -> None:
    parts = [kind.from_linear(torch.randn(size, 64), torch.randn(size)) for size in (32, 16, 16)]
    whole = kind.stacked(parts)  # type: ignore[arg-type]
    for rows in (1, 5):
        x = inputs(rows, 64, torch.float32)
        assert torch.allclose(whole(x), torch.cat([part(x) for part in parts], 1), rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="laid out"):
        kind.stacked(parts)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="bias"):
        kind.stacked([kind.from_linear(torch.randn(16, 64)), whole])  # type: ignore[list-item]


def test_quantized_layers_have_nothing_to_train() -> None:
    for layer in (
        Int8Linear.from_linear(nn.Linear(32, 16).weight),
        Int4Linear.from_linear(torch.ones(16, 64)),
    ):
        assert list(layer.parameters()) == []


def test_four_bits_lose_less_with_the_best_scale_than_with_the_largest_weight() -> None:
    weight = torch.randn(64, 256)
    integers, scale = quantize_int4(weight, 32)
    plain = (weight.unflatten(1, (-1, 32)).abs().amax(2, keepdim=True) / 7).bfloat16().float()
    naive = (weight.unflatten(1, (-1, 32)) / plain).round().clamp(-8, 7) * plain
    error = (dequantize(integers, scale, torch.float32) - weight).square().mean()
    assert error < 0.75 * (naive.flatten(1) - weight).square().mean()
