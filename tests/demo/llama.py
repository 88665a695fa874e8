"""A tiny random Llama and its tokenizer, in the place of SmolLM2."""

from __future__ import annotations

from typing import Any

import torch

from sightline.demo.language_model import LanguageModel
from sightline.demo.template import CHAT_TEMPLATE, VISION_TOKENS


def make_llama(vocabulary: int, seed: int = 0) -> Any:
    """Head size 16 with two key-value heads for four; weights large enough to matter; tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    return model


def as_language_model(llama: Any) -> LanguageModel:
    config = llama.config
    return LanguageModel(
        weights={name: value.clone() for name, value in llama.model.state_dict().items()},
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        key_value_heads=config.num_key_value_heads,
        max_positions=config.max_position_embeddings,
        rope_theta=config.rope_parameters["rope_theta"],
        norm_eps=config.rms_norm_eps,
    )


def make_words() -> tuple[list[str], list[str]]:
    """(tokens, merges) of a byte-level BPE whose first three tokens are SmolLM2's marks."""
    from tokenizers import pre_tokenizers

    merges = ["c a", "ca t", "d o", "do g", "Ġ cat"]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return tokens + [merge.replace(" ", "") for merge in merges], merges


def make_tokenizer(*, vision: bool = True) -> Any:
    from sightline.demo.language_model import _tokenizer

    tokens, merges = make_words()
    fields = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(tokens) - 3),
        "llama.context_length": 512,
    }
    tokenizer = _tokenizer(fields)
    if vision:
        tokenizer.add_special_tokens({"additional_special_tokens": list(VISION_TOKENS)})
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
