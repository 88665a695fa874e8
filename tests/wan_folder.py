"""A whole Wan model with random weights as a diffusers folder, made in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_wan import make_model

WORDS = ["<pad>", "</s>", "<unk>", "a", "and", "moving", "left", "right", "up", "down"]
WORDS += ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CHANNELS, TEXT_DIM = 4, 16


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def make_text_encoder(seed: int = 0) -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(seed)
    config = UMT5Config(
        vocab_size=len(WORDS),
        d_model=TEXT_DIM,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
    )
    return UMT5EncoderModel(config).eval()


def make_vae(seed: int = 0) -> Any:
    """Sides by 4, time by 4."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(seed)
    return AutoencoderKLWan(
        base_dim=4,
        z_dim=CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.0, 1.2, 0.9, 1.1],
        scale_factor_spatial=4,
    ).eval()


def make_pipeline(layers: int = 3, seed: int = 0, shift: float = 3.0) -> Any:
    """diffusers' own pipeline of the parts; sides are multiples of 16, frames 4n + 1."""
    from diffusers import UniPCMultistepScheduler, WanPipeline

    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )
    return WanPipeline(
        make_tokenizer(), make_text_encoder(seed), make_vae(seed), scheduler, make_model(layers, seed)
    )


def make_wan_folder(path: Path, layers: int = 3, seed: int = 0) -> Path:
    """Write it as `save_pretrained` does."""
    make_pipeline(layers, seed).save_pretrained(path)
    return path
