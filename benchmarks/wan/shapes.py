"""Wan2.1's models with random weights, made on the device they run on; nothing is downloaded."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch


@dataclass(frozen=True)
class Shape:
    """A model's sizes. Those of the VAE and the text encoder are arguments of their classes."""

    heads: int
    head_dim: int
    ffn: int
    layers: int
    text_dim: int
    vae: dict[str, Any]
    encoder: dict[str, Any]


UMT5 = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 256384}
TINY_UMT5 = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 100}
SHAPES = {
    "t2v-1.3B": Shape(12, 128, 8960, 30, 4096, {}, UMT5),
    "t2v-14B": Shape(40, 128, 13824, 40, 4096, {}, UMT5),
    "tiny": Shape(4, 64, 1024, 4, 64, {"base_dim": 16}, TINY_UMT5),
}


def make_transformer(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    """In `dtype` but for what diffusers keeps in float32 when it loads the published weights."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    with torch.device(device):
        model = WanTransformer3DModel(
            num_attention_heads=shape.heads,
            attention_head_dim=shape.head_dim,
            ffn_dim=shape.ffn,
            num_layers=shape.layers,
            text_dim=shape.text_dim,
        )
    wide = set(model._keep_in_fp32_modules)
    for name, weights in model.named_parameters():
        if not wide & set(name.split(".")):
            weights.data = weights.data.to(dtype)
    return model.eval().requires_grad_(False)


def sharing(model: Any) -> Any:
    """Another model on the same weights."""
    known = {id(each): each for each in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, known)


def make_vae(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    """Wan2.1's VAE is diffusers' default."""
    from diffusers import AutoencoderKLWan

    with torch.device(device):
        return AutoencoderKLWan(**shape.vae).to(dtype).eval().requires_grad_(False)


def make_text_encoder(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    """UMT5-XXL's encoder; its 5.7 billion weights are made in `dtype`."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(**shape.encoder, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return UMT5EncoderModel(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def make_scheduler() -> Any:
    """As the published folder has it."""
    return SimpleNamespace(config={"prediction_type": "flow_prediction", "num_train_timesteps": 1000})
