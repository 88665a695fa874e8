"""The fused operators and the measured attention on a real CUDA device, beside their definitions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from sightline.hardware.operators.activations import activation, swiglu
from sightline.hardware.operators.dense_attention import (
    attention_forward,
    attention_forward_varlen,
    measurements,
)
from sightline.hardware.operators.norms import layer_norm_scale_shift, rms_norm
from sightline.hardware.operators.rotary import rotary_position_embedding

pytestmark = [
    pytest.mark.accelerator,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# Fused arithmetic keeps float32 between the steps where the definition rounds to bf16.
DTYPES = [(torch.float32, 1e-5), (torch.bfloat16, 3.2e-2)]


def calls(dtype: torch.dtype) -> dict[str, Callable[..., torch.Tensor]]:
    generator = torch.Generator("cuda").manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda").to(dtype)

    x, heads, angles = drawn(2, 300, 96), drawn(2, 300, 3, 32), drawn(300, 32)
    norm = nn.LayerNorm(96, device="cuda").requires_grad_(False)
    modulated = partial(layer_norm_scale_shift, norm, x, drawn(2, 1, 96).float(), drawn(2, 1, 96).float())
    found: dict[str, Callable[..., torch.Tensor]] = {
        "rms_norm": partial(rms_norm, x, drawn(96)),
        "layer_norm_scale_shift": modulated,
        "swiglu": partial(swiglu, x),
        "half": partial(rotary_position_embedding, heads, angles.cos(), angles.sin()),
        "interleaved": partial(
            rotary_position_embedding, heads, angles.cos(), angles.sin(), "rotated_interleaved"
        ),
    }
    kinds = ("silu", "mish", "gelu", "gelu-tanh", "gelu-fast", "relu")
    return found | {kind: partial(activation, x, kind) for kind in kinds}


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_compiled_forms_are_their_definitions(
    dtype: torch.dtype, tolerance: float, caplog: pytest.LogCaptureFixture
) -> None:
    for name, call in calls(dtype).items():
        torch.testing.assert_close(
            call(),
            call(fused=False),
            rtol=tolerance,
            atol=tolerance,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    assert "unfused" not in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_measured_attention_is_the_definition(cache: Path, dtype: torch.dtype, masked: bool) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    query, key, value = (
        torch.randn(1, tokens, 4, 64, generator=generator, device="cuda").to(dtype)
        for tokens in (700, 300, 300)
    )
    keep = torch.rand(1, 1, 1, 300, generator=generator, device="cuda") < 0.7 if masked else None
    expected = attention_forward(query, key, value, keep, fused=False)
    given = attention_forward(query, key, value, keep)
    torch.testing.assert_close(given, expected, rtol=0, atol=2e-4 if dtype == torch.float32 else 2.5e-2)
    trials = {trial.name: trial for trial in measurements(query.device)[0].trials}
    assert trials["sdpa"].reason is trials["sdpa_math"].reason is None
    assert {trial.reason is None for trial in trials.values() if trial.seconds is not None} == {True}


@pytest.mark.parametrize("causal", [False, True])
def test_segments(causal: bool) -> None:
    q, k, v = (torch.randn(50, heads, 64, device="cuda").bfloat16() for heads in (4, 2, 2))
    given = attention_forward_varlen(q, k, v, (0, 20, 50), (0, 9, 50), causal=causal)
    expected = attention_forward_varlen(q, k, v, (0, 20, 50), (0, 9, 50), causal=causal, fused=False)
    torch.testing.assert_close(given, expected, rtol=0, atol=2.5e-2)
