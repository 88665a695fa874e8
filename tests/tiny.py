"""Tiny random checkpoints of each family, with a small real tokenizer: everything a real folder has, in a second."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from sightline.demo.template import CHAT_TEMPLATE, VISION_TOKENS

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
_TEXTS = [
    "what shape is in the image? a red circle. is there a blue square? yes no",
    "describe the picture: a small green triangle on the left, the quick brown fox jumps over the lazy dog",
    "system user assistant seconds 0123456789 <> . , : ;",
]
# Limits small enough that a test's pictures take a few tokens.
_MIN_PIXELS, _MAX_PIXELS = 56 * 56, 112 * 112


@lru_cache(maxsize=1)
def make_tokenizer() -> Any:
    """A byte-level BPE trained on a few sentences, with Qwen's special tokens and our chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *VISION_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_config(model_type: str, *, tied: bool = False) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2VLConfig, Qwen3VLConfig

    tokenizer = make_tokenizer()
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        "tie_word_embeddings": tied,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision: dict[str, Any] = {
        "depth": 2,
        "num_heads": 2,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
    }
    if model_type == "qwen2_vl":
        vision |= {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, "in_chans": 3}
        text.pop("head_dim")
        kind = Qwen2VLConfig
    elif model_type == "qwen2_5_vl":
        vision |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64, "window_size": 56}
        vision |= {"fullatt_block_indexes": [1], "tokens_per_second": 2}
        text.pop("head_dim")
        kind = Qwen2_5_VLConfig
    elif model_type == "qwen3_vl":
        vision |= {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}
        vision |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
        text["rope_parameters"] = text["rope_parameters"] | {"mrope_interleaved": True}
        kind = Qwen3VLConfig
    else:
        raise ValueError(model_type)
    names = ("vision_start", "vision_end", "image_pad", "video_pad")
    start, end, image, video = (tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names)
    return kind(
        text_config=text,
        vision_config=vision,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=tied,
    )


def make_model(model_type: str, *, seed: int = 0, tied: bool = False) -> Any:
    """A random float32 model whose weights are large enough that every part changes the answer."""
    from sightline.models.families import FAMILIES as KNOWN

    torch.manual_seed(seed)
    model = KNOWN[model_type].model_class()(make_config(model_type, tied=tied)).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15 if "embed" not in name else 0.6)
            elif "norm" not in name and "ln" not in name:
                parameter.normal_(0, 0.05)
    return model


def make_model_folder(
    folder: Path,
    model_type: str = "qwen2_5_vl",
    *,
    seed: int = 0,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a complete checkpoint folder and return it."""
    folder = Path(folder)
    make_model(model_type, seed=seed, tied=tied).to(dtype).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    limits = {"shortest_edge": _MIN_PIXELS, "longest_edge": _MAX_PIXELS}
    common = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    image = {"image_processor_type": "Qwen2VLImageProcessor", **common, "size": limits}
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    clip = (
        limits
        if model_type != "qwen3_vl"
        else {"shortest_edge": _MIN_PIXELS, "longest_edge": 8 * _MAX_PIXELS}
    )
    video = {"video_processor_type": "Qwen2VLVideoProcessor", **common, "size": clip}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video))
    return folder
