"""RMSNorm and the modulated LayerNorm against float64, and their forms for NPUs."""

from __future__ import annotations

import pytest
import torch
from npu_dense_operators import DenseTorchNpu
from torch import nn

from sightline.errors import UsageError
from sightline.hardware.operators.norms import (
    RMSNorm,
    layer_norm_scale_shift,
    layernorm_scale_shift,
    rms_norm,
)

# The definitions compute in float32; bf16 is one rounding of the result, RMSNorm's weight another.
DTYPES = [(torch.float32, 2e-6), (torch.bfloat16, 8e-3)]


def rms_in_float64(x: torch.Tensor, weight: torch.Tensor | None, eps: float) -> torch.Tensor:
    x = x.double()
    normed = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return normed if weight is None else normed * weight.double()


def modulated_in_float64(
    norm: nn.LayerNorm, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
) -> torch.Tensor:
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    if norm.weight is not None:
        normed = normed * norm.weight.double() + norm.bias.double()
    return normed * (1 + scale.double()) + shift.double()


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_rms_norm(dtype: torch.dtype, tolerance: float, weighted: bool, eps: float) -> None:
    x = torch.randn(3, 5, 48).to(dtype)
    weight = torch.randn(48).to(dtype) if weighted else None
    given = rms_norm(x, weight, eps)
    assert given.dtype == dtype
    torch.testing.assert_close(given.double(), rms_in_float64(x, weight, eps), rtol=tolerance, atol=1e-5)


def test_rms_norm_is_the_arithmetic_of_transformers() -> None:
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

    theirs = Qwen2RMSNorm(48, eps=1e-6).bfloat16()
    ours = RMSNorm(48).bfloat16()
    with torch.no_grad():
        theirs.weight.normal_()
        ours.weight.copy_(theirs.weight)
    x = torch.randn(64, 48).bfloat16()
    assert torch.equal(ours(x), theirs(x))
    assert torch.equal(ours(x, if_fused=False), theirs(x))


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("spans", [(2, 48), (2, 1, 48), (2, 5, 48), (48,)])
def test_layer_norm_scale_shift(
    dtype: torch.dtype, tolerance: float, affine: bool, spans: tuple[int, ...]
) -> None:
    norm = layer_norm(affine)
    x = torch.randn(2, 5, 48).to(dtype)
    scale, shift = torch.randn(spans), torch.randn(spans)
    given = layer_norm_scale_shift(norm, x, scale, shift)
    assert given.dtype == dtype
    placed = (scale[:, None], shift[:, None]) if len(spans) == 2 else (scale, shift)
    expected = modulated_in_float64(norm, x, *placed)
    torch.testing.assert_close(given.double(), expected, rtol=tolerance, atol=2e-5)
    assert layernorm_scale_shift is layer_norm_scale_shift


def layer_norm(affine: bool) -> nn.LayerNorm:
    norm = nn.LayerNorm(48, eps=1e-4, elementwise_affine=affine)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm.requires_grad_(False)


def test_a_square_scale_is_taken_by_samples() -> None:
    x, scale = torch.randn(4, 4, 48), torch.randn(4, 48)
    given = layer_norm_scale_shift(layer_norm(False), x, scale, scale)
    assert torch.equal(given, layer_norm_scale_shift(layer_norm(False), x, scale[:, None], scale[:, None]))


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_the_npu_has_an_operator_for_each(
    torch_npu: DenseTorchNpu, dtype: torch.dtype, tolerance: float
) -> None:
    x, weight = torch.randn(2, 5, 48).to(dtype), torch.randn(48).to(dtype)
    for given in (weight, None):
        expected = rms_norm(x, given, fused=False)
        torch.testing.assert_close(rms_norm(x, given), expected, rtol=2 * tolerance, atol=1e-5)
    assert {name for name, _ in torch_npu.calls} == {"rms_norm"}
    torch_npu.calls.clear()
    scale, shift = torch.randn(2, 1, 48), torch.randn(2, 1, 48)
    for norm in (layer_norm(True), layer_norm(False)):
        expected = layer_norm_scale_shift(norm, x, scale, shift, fused=False)
        # Folding the scale into the weight changes the order of float32 operations.
        torch.testing.assert_close(
            layer_norm_scale_shift(norm, x, scale, shift), expected, rtol=2 * tolerance, atol=2e-5
        )
    assert torch_npu.calls[-2:] == [("layer_norm", (5, 48))] * 2, "one operator for each sample"


def test_the_npu_form_leaves_gradients_and_scales_of_tokens_to_the_definition(
    torch_npu: DenseTorchNpu,
) -> None:
    norm, x = layer_norm(True), torch.randn(2, 5, 48)
    per_token, per_sample = torch.randn(2, 5, 48), torch.randn(2, 1, 48)
    layer_norm_scale_shift(norm, x, per_sample, per_sample)
    torch_npu.calls.clear()
    layer_norm_scale_shift(norm, x, per_token, per_sample)
    learning = x.clone().requires_grad_()
    layer_norm_scale_shift(norm, learning, per_sample, per_sample).sum().backward()
    assert torch_npu.calls == []
    assert learning.grad is not None


def test_the_fused_forms_trace_as_one_graph(compiled: list[str]) -> None:
    x, weight, scale = torch.randn(2, 5, 48), torch.randn(48), torch.randn(2, 48)
    torch.testing.assert_close(rms_norm(x, weight), rms_norm(x, weight, fused=False))
    norm = layer_norm(True)
    expected = layer_norm_scale_shift(norm, x, scale, scale, fused=False)
    torch.testing.assert_close(layer_norm_scale_shift(norm, x, scale, scale), expected)
    assert compiled == ["_plain_rms", "_plain_scale_shift"]


def test_what_does_not_fit_is_one_sentence() -> None:
    x, norm = torch.zeros(2, 5, 48), layer_norm(False)
    with pytest.raises(UsageError, match="weight of an RMSNorm"):
        rms_norm(x, torch.ones(5))
    with pytest.raises(UsageError, match=r"scale \(3, 48\) does not fit"):
        layer_norm_scale_shift(norm, x, torch.zeros(3, 48), torch.zeros(2, 48))
    with pytest.raises(UsageError, match=r"shift \(2, 5, 1, 48\) does not fit"):
        layer_norm_scale_shift(norm, x, torch.zeros(48), torch.zeros(2, 5, 1, 48))
    with pytest.raises(UsageError, match="a LayerNorm over D"):
        layer_norm_scale_shift(nn.LayerNorm(40), x, torch.zeros(48), torch.zeros(48))
