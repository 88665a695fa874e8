"""The classes of Wan2.1, small: what each part is made of before training."""

from __future__ import annotations

from typing import Any

from clips import DIGITS, DIRECTIONS

CHANNELS = 16  # of a latent, as in Wan2.1
TEXT_WIDTH = 128
SHIFT = 5.0  # of the noise levels, at training and at sampling
WORDS = [
    "a",
    "an",
    "the",
    "digit",
    "number",
    "and",
    ",",
    ".",
    "moving",
    "going",
    "moves",
    "goes",
    "that",
    "to",
]


def autoencoder(mean: list[float] | None = None, std: list[float] | None = None) -> Any:
    """Wan's 3D causal autoencoder, 8 times in space and 4 times in time; RGB in [-1, 1].

    The first halving in space is a rearrangement of pixels (`patch_size`, as in Wan2.2), which makes it three times
    faster on a CPU than another level of convolutions.
    """
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=16,
        z_dim=CHANNELS,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        attn_scales=[],
        temperal_downsample=[True, True],
        patch_size=2,
        in_channels=12,
        out_channels=12,
        latents_mean=mean or [0.0] * CHANNELS,
        latents_std=std or [1.0] * CHANNELS,
        scale_factor_spatial=8,
        scale_factor_temporal=4,
    )


def transformer() -> Any:
    """80 video tokens for 17 frames of 64 x 64: 5 x 4 x 4."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=48,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=128,
        ffn_dim=576,
        num_layers=8,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=128,
    )


def text_encoder(vocabulary: int) -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary,
            d_model=TEXT_WIDTH,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=32,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def tokenizer() -> Any:
    """One token a word of the grammar, an end token as T5 has it, and one token for every other word."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [
        "<pad>",
        "</s>",
        "<unk>",
        *WORDS,
        *DIGITS,
        *map(str, range(10)),
        *DIRECTIONS,
        "upwards",
        "downwards",
    ]
    inner = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"<unk>|\w+|[^\w\s]"), "removed", invert=True)
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
        padding_side="right",
    )


def scheduler() -> Any:
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT)
