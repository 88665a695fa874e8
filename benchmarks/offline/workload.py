"""The prompts of each mode, new ones every run, so that no cache of an earlier run answers them."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

TEXT = (
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>describe this picture<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def pictures(folder: Path, count: int, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Prompts with a noise picture of (width, height) each, written to `folder`."""
    random = np.random.default_rng(secrets.randbits(64))
    prompts = []
    for number in range(count):
        path = folder / f"{number}.png"
        pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(path, compress_level=1)
        prompts.append({"text": TEXT, "image": str(path)})
    return prompts


def texts(count: int, tokens: int, model: Path) -> list[dict[str, Any]]:
    """Prompts of random tokens that are no special ones; they share no beginning."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    known = np.setdiff1d(list(tokenizer.get_vocab().values()), list(tokenizer.added_tokens_decoder))
    random = np.random.default_rng(secrets.randbits(64))
    return [{"ids": random.choice(known, tokens).tolist()} for _ in range(count)]
