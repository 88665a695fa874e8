"""Integers and scales of weights: range, rounding, packing."""

from __future__ import annotations

import pytest
import torch

from sightline.errors import SightlineError
from sightline.models.quantization import weights
from sightline.models.quantization.weights import (
    NotFiniteError,
    dequantize,
    named,
    pack_int4,
    quantize_int4,
    quantize_int8,
    unpack_int4,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_int8_is_the_nearest_level(dtype: torch.dtype) -> None:
    weight = (torch.randn(33, 70) * torch.rand(33, 1)).to(dtype)
    weight[7] = 0
    integers, scale = quantize_int8(weight)
    assert integers.abs().max() == 127
    assert scale.dtype == (torch.bfloat16 if dtype == torch.bfloat16 else torch.float32)
    back = dequantize(integers, scale, torch.float32)
    # The largest may lie up to half a bfloat16 step of the scale beyond the last level.
    beyond = weight.float().abs() * 2**-8
    assert ((back - weight.float()).abs() <= scale.float() * 0.5001 + beyond).all()
    assert not back[7].any()


@pytest.mark.parametrize("group", [32, 64])
def test_int4_stays_in_range_and_near(group: int) -> None:
    weight = torch.randn(20, 128)
    weight[3] = 0
    integers, scale = quantize_int4(weight, group)
    assert integers.min() >= -8
    assert integers.max() <= 7
    assert scale.shape == (20, 128 // group)
    assert not dequantize(integers, scale, torch.float32)[3].any()
    assert (dequantize(integers, scale, torch.float32) - weight).square().mean() < 0.02


def test_work_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(37, 64)
    whole = (*quantize_int8(weight), *quantize_int4(weight, 32), pack_int4(quantize_int4(weight, 32)[0]))
    monkeypatch.setattr(weights, "_PIECE", 300)
    parts = (*quantize_int8(weight), *quantize_int4(weight, 32), pack_int4(quantize_int4(weight, 32)[0]))
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_packing_is_undone() -> None:
    integers = torch.randint(-8, 8, (19, 72), dtype=torch.int8)
    packed = pack_int4(integers)
    assert packed.dtype == torch.int32
    assert packed.shape == (19, 9)
    assert packed[0, 0].item() & 15 == integers[0, 0].item() + 8  # the first in the lowest bits
    assert torch.equal(unpack_int4(packed), integers)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_no_integer_stands_for_is_refused(
    bad: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_PIECE", 300)
    weight = torch.randn(37, 64).to(dtype)
    weight[30, 50] = bad
    with pytest.raises(NotFiniteError):
        quantize_int8(weight)
    with pytest.raises(NotFiniteError):
        quantize_int4(weight, 32)
    with (
        pytest.raises(SightlineError, match=r"layer\.weight in folder holds nan"),
        named("layer.weight", "folder"),
    ):
        quantize_int8(weight)


def test_unpacking_copies_nothing_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a copy waits for the device, so a step with it could not be captured as a graph."""
    integers = torch.randint(-8, 8, (16, 32), dtype=torch.int8)
    packed = pack_int4(integers)
    monkeypatch.setattr(torch, "tensor", None)
    assert torch.equal(unpack_int4(packed), integers)
