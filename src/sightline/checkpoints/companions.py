"""The files beside the weights that say how to feed a model: tokenizer, chat template, generation settings."""

from __future__ import annotations

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
TEMPLATE = ("chat_template.jinja", "chat_template.json")
PROCESSOR = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
GENERATION = ("generation_config.json",)
