"""The rewritten language model and tower against the module of transformers, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_model_folder
from torch import nn

from sightline.hardware.operators.attention.paged import Piece, Plan
from sightline.hardware.operators.attention.reference import ReferenceAttention
from sightline.models.attention import batch_segments
from sightline.models.fast.linear import Joined, PackedLinear, convert_linear, join
from sightline.models.fast.text import FastText, Norm, can_rewrite
from sightline.models.fast.vision import rewrite_tower
from sightline.models.loading import load_model
from sightline.models.text import Deepstack, Text, TransformersText

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def cache(config: Any) -> ReferenceAttention:
    attention = ReferenceAttention(4)
    attention.allocate(
        layers=config.num_hidden_layers,
        blocks=8,
        kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    return attention


def two_steps(text: Text, attention: ReferenceAttention, width: int, levels: int) -> list[torch.Tensor]:
    """A prompt and a chunk, then one token of each; the first step with vision features."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    steps = [[Piece(7, 0, [0, 1]), Piece(5, 0, [4, 6])], [Piece(1, 7, [0, 1]), Piece(1, 5, [4, 6])]]
    found = []
    for step, pieces in enumerate(steps):
        plan: Plan = attention.plan(pieces)
        positions = torch.randint(0, 40, (3, plan.tokens), generator=generator)
        rows = torch.tensor([1, 2, 8])
        deepstack = Deepstack(rows, [draw(3, width) for _ in range(levels)]) if levels and not step else None
        found.append(text(draw(plan.tokens, width), positions, plan, deepstack))
    return found


@pytest.mark.parametrize("model_type", FAMILIES)
@torch.inference_mode()
def test_text_equals_the_module(model_type: str, tmp_path: Path) -> None:
    module = load_model(make_model_folder(tmp_path / "m", model_type), device="cpu", dtype="fp32").module
    language_model = module.model.language_model
    config, levels = language_model.config, 2 if model_type == "qwen3_vl" else 0
    attention = cache(config)
    plain = two_steps(TransformersText(language_model, attention), attention, config.hidden_size, levels)
    assert can_rewrite(language_model)
    fast = FastText(language_model, attention, convert_linear)
    for found, expected in zip(two_steps(fast, attention, config.hidden_size, levels), plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", FAMILIES)
@torch.inference_mode()
def test_tower_equals_the_module(model_type: str, tmp_path: Path) -> None:
    module = load_model(make_model_folder(tmp_path / "m", model_type), device="cpu", dtype="fp32").module
    visual = module.model.visual
    grids = torch.tensor([[1, 6, 10], [2, 4, 4]])
    pixels = torch.randn(92, visual.patch_embed.proj.weight[0].numel())
    expected = module.model.get_image_features(pixels, grids, return_dict=True)
    batch_segments(visual)
    rewrite_tower(visual, convert_linear)
    found = module.model.get_image_features(pixels, grids, return_dict=True)
    for one, other in zip(found.pooler_output, expected.pooler_output, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for one, other in zip(
        getattr(found, "deepstack_features", None) or (),
        getattr(expected, "deepstack_features", None) or (),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_norm_is_that_of_transformers() -> None:
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRMSNorm

    for dtype in (torch.float32, torch.bfloat16):
        norm = Qwen2VLRMSNorm(24).to(dtype)
        nn.init.normal_(norm.weight)
        rows = torch.randn(5, 24).to(dtype) * 30
        kept = rows.clone()
        torch.testing.assert_close(Norm(norm.weight, 1e-6)(rows), norm(rows))
        assert torch.equal(rows, kept)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 70])
def test_a_packed_linear_is_the_linear(bias: bool, rows: int) -> None:
    linear = nn.Linear(48, 80, bias=bias, dtype=torch.bfloat16)
    packed = convert_linear(linear)
    assert isinstance(packed, PackedLinear)
    with torch.inference_mode():
        inputs = torch.randn(2, rows, 48).bfloat16()
        torch.testing.assert_close(packed(inputs), linear(inputs), rtol=1e-2, atol=1e-2)


def test_maps_of_one_input_are_joined() -> None:
    parts = [nn.Linear(6, 4), nn.Linear(6, 2, bias=False), nn.Linear(6, 3)]
    inputs = torch.randn(5, 6)
    expected = torch.cat([part(inputs) for part in parts], dim=-1)
    torch.testing.assert_close(join(parts)(inputs), expected)
    odd = [parts[0], nn.Sequential(parts[1])]
    assert isinstance(join(odd), Joined)
    torch.testing.assert_close(join(odd)(inputs), expected[:, :6])
