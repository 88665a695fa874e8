"""The files beside the weights that say how to feed a model: tokenizer, chat template, generation settings."""

from __future__ import annotations

import shutil
from pathlib import Path

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


def copy(source: Path, folder: Path) -> None:
    """All of them that a model's folder has."""
    for name in (*TOKENIZER, *TEMPLATE, *PROCESSOR, *GENERATION):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
