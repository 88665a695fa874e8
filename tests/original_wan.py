"""A folder with random weights as Wan's authors publish theirs: their file names, and their names of every tensor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from wan_folder import WORDS, make_tokenizer

TEXT_DIM, HEADS, LAYERS, WIDTH = 32, 2, 2, 256
TOKENS = len(WORDS) + 4

_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_RESIDUAL = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}


def make_transformer(seed: int = 0) -> Any:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(seed)
    return WanTransformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        text_dim=TEXT_DIM,
        freq_dim=16,
        ffn_dim=48,
        num_layers=LAYERS,
    ).eval()


def make_vae(seed: int = 0) -> Any:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(seed)
    return AutoencoderKLWan(base_dim=4).eval()


def make_text_encoder(seed: int = 0) -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(seed)
    config = UMT5Config(
        vocab_size=TOKENS, d_model=TEXT_DIM, d_kv=8, d_ff=40, num_layers=2, num_heads=3,
        relative_attention_num_buckets=8,
    )  # fmt: skip
    model = UMT5EncoderModel(config).eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.15 * torch.randn_like(weights))
    return model


def transformer_names(layers: int = LAYERS) -> dict[str, str]:
    """diffusers' name for each of the authors'."""
    stems = {
        "patch_embedding": "patch_embedding",
        "text_embedding.0": "condition_embedder.text_embedder.linear_1",
        "text_embedding.2": "condition_embedder.text_embedder.linear_2",
        "time_embedding.0": "condition_embedder.time_embedder.linear_1",
        "time_embedding.2": "condition_embedder.time_embedder.linear_2",
        "time_projection.1": "condition_embedder.time_proj",
        "head.head": "proj_out",
    }
    names = {"head.modulation": "scale_shift_table"}
    for number in range(layers):
        block = f"blocks.{number}"
        for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2")):
            stems |= {f"{block}.{theirs}.{a}": f"{block}.{ours}.{b}" for a, b in _ATTENTION.items()}
        stems |= {
            f"{block}.ffn.0": f"{block}.ffn.net.0.proj",
            f"{block}.ffn.2": f"{block}.ffn.net.2",
            f"{block}.norm3": f"{block}.norm2",
        }
        names[f"{block}.modulation"] = f"{block}.scale_shift_table"
    for theirs, ours in stems.items():
        names[f"{theirs}.weight"] = f"{ours}.weight"
        if "norm_" not in theirs:
            names[f"{theirs}.bias"] = f"{ours}.bias"
    return names


def vae_name(name: str) -> str:
    """The authors' name for one of diffusers'."""
    if name.startswith(("quant_conv", "post_quant_conv")):
        return name.replace("post_quant_conv", "conv2").replace("quant_conv", "conv1")
    parts = name.split(".")
    side = parts[0]
    if parts[1] in ("conv_in", "norm_out", "conv_out"):
        return ".".join(
            [side, {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}[parts[1]], *parts[2:]]
        )
    if parts[1] == "mid_block":
        place = "middle." + ("1" if parts[2] == "attentions" else str(2 * int(parts[3])))
        rest = parts[4:]
    elif parts[1] == "down_blocks":
        place, rest = f"downsamples.{parts[2]}", parts[3:]
    else:
        within = 3 if parts[3] == "upsamplers" else int(parts[4])
        place, rest = f"upsamples.{4 * int(parts[2]) + within}", parts[5:]
    inside = {**_RESIDUAL, "conv_shortcut": "shortcut"}.get(rest[0], rest[0])
    return ".".join([side, place, inside, *rest[1:]])


def text_state(model: Any) -> dict[str, torch.Tensor]:
    """The weights of a `UMT5EncoderModel` by the authors' names."""
    given = model.state_dict()
    state = {
        "token_embedding.weight": given["shared.weight"],
        "norm.weight": given["encoder.final_layer_norm.weight"],
    }
    for number in range(model.config.num_layers):
        attention, dense = (f"encoder.block.{number}.layer.{index}." for index in (0, 1))
        for name in "qkvo":
            state[f"blocks.{number}.attn.{name}.weight"] = given[f"{attention}SelfAttention.{name}.weight"]
        state |= {
            f"blocks.{number}.{theirs}.weight": given[f"{ours}.weight"]
            for theirs, ours in (
                ("norm1", f"{attention}layer_norm"),
                ("pos_embedding.embedding", f"{attention}SelfAttention.relative_attention_bias"),
                ("norm2", f"{dense}layer_norm"),
                ("ffn.gate.0", f"{dense}DenseReluDense.wi_0"),
                ("ffn.fc1", f"{dense}DenseReluDense.wi_1"),
                ("ffn.fc2", f"{dense}DenseReluDense.wo"),
            )
        }
    return {name: value.clone() for name, value in state.items()}


def transformer_state(model: Any) -> dict[str, torch.Tensor]:
    """The weights of a transformer by the authors' names."""
    state = model.state_dict()
    return {theirs: state[ours].clone() for theirs, ours in transformer_names(len(model.blocks)).items()}


def vae_state(model: Any) -> dict[str, torch.Tensor]:
    """The weights of a VAE by the authors' names."""
    return {vae_name(name): value.clone() for name, value in model.state_dict().items()}


def make_original_folder(path: Path) -> Path:
    """Write it; the parts are those that `make_transformer`, `make_vae` and `make_text_encoder` give."""
    from safetensors.torch import save_file

    path.mkdir(parents=True)
    save_file(transformer_state(make_transformer()), path / "diffusion_pytorch_model.safetensors")
    config = {
        "_class_name": "WanModel", "model_type": "t2v", "dim": WIDTH, "ffn_dim": 48, "freq_dim": 16, "in_dim": 16,
        "num_heads": HEADS, "num_layers": LAYERS, "out_dim": 16, "text_len": 512, "eps": 1e-06,
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    torch.save(vae_state(make_vae()), path / "Wan2.1_VAE.pth")
    torch.save(text_state(make_text_encoder()), path / "models_t5_umt5-xxl-enc-bf16.pth")
    make_tokenizer().save_pretrained(path / "google" / "umt5-xxl")
    return path
