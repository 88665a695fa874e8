"""A block of Wan out of these operators gives, number for number, what diffusers' own gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sightline.hardware.operators.activations import activation
from sightline.hardware.operators.dense_attention import attention_forward
from sightline.hardware.operators.norms import layer_norm_scale_shift, rms_norm
from sightline.hardware.operators.rotary import rotary_position_embedding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wan_block(dtype: torch.dtype) -> None:
    wan = pytest.importorskip("diffusers.models.transformers.transformer_wan")
    torch.manual_seed(0)
    block = wan.WanTransformerBlock(128, 160, 4, cross_attn_norm=True).to(dtype).eval()
    rope = wan.WanRotaryPosEmbed(32, (1, 2, 2), 64)
    hidden, text = torch.randn(2, 48, 128).to(dtype), torch.randn(2, 20, 128).to(dtype)
    time, angles = torch.randn(2, 6, 128), rope(torch.randn(2, 4, 3, 8, 8))
    with torch.no_grad():
        expected = block(hidden, text, time, angles)
        assert torch.equal(by_operators(block, hidden, text, time, angles), expected)


def by_operators(
    block: Any, hidden: torch.Tensor, text: torch.Tensor, time: torch.Tensor, angles: Any
) -> Any:
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (block.scale_shift_table + time.float()).chunk(
        6, dim=1
    )
    normed = layer_norm_scale_shift(block.norm1, hidden, scale, shift)
    hidden = (hidden.float() + attend(block.attn1, normed, normed, angles) * gate).to(hidden.dtype)
    normed = block.norm2(hidden.float()).to(hidden.dtype)
    hidden = hidden + attend(block.attn2, normed, text, None)
    normed = layer_norm_scale_shift(block.norm3, hidden, ffn_scale, ffn_shift)
    inside = activation(block.ffn.net[0].proj(normed), "gelu-tanh")
    return (hidden.float() + block.ffn.net[2](inside).float() * ffn_gate).to(hidden.dtype)


def attend(layer: Any, hidden: torch.Tensor, seen: torch.Tensor, angles: Any) -> torch.Tensor:
    query = rms_norm(layer.to_q(hidden), layer.norm_q.weight, layer.norm_q.eps).unflatten(2, (4, -1))
    key = rms_norm(layer.to_k(seen), layer.norm_k.weight, layer.norm_k.eps).unflatten(2, (4, -1))
    if angles is not None:
        query, key = (
            rotary_position_embedding(part, *angles, "rotated_interleaved") for part in (query, key)
        )
    value = layer.to_v(seen).unflatten(2, (4, -1))
    mixed = attention_forward(query, key, value, opt_mode="static")
    result: torch.Tensor = layer.to_out[0](mixed.flatten(2))
    return result
