"""PEFT adapters of a tiny checkpoint, as PEFT writes them, and what PEFT answers with each."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from exactness import QUESTIONS, TOKENS, Plain, answer_plainly

from sightline.models.families import family_of
from sightline.models.loading import vision_of
from sightline.models.processor import load_processor

WORDS = r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
# Of the three families: the blocks' joined projection and the way into the text, deepstack's among them.
SIGHT = r".*visual\.(blocks\.\d+\.attn\.(qkv|proj)|.*merger.*(mlp\.[02]|linear_fc[12]))"

#: By name: what each adapter changes. `pixels` go into a preprocessor_config.json, as training writes it.
KINDS: dict[str, dict[str, Any]] = {
    "words": {"target_modules": WORDS, "r": 4, "lora_alpha": 8},
    "sight": {
        "target_modules": rf"({SIGHT}|.*language_model\.layers\.\d+\.(self_attn\.(q|v)_proj|mlp\.up_proj))",
        "r": 3,
        "lora_alpha": 5,
        "use_rslora": True,
        "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 5},
        "alpha_pattern": {"v_proj": 3},
    },
    "whole": {
        "target_modules": r".*language_model\.layers\.1\..*(k_proj|o_proj|down_proj)",
        "r": 2,
        "modules_to_save": ["visual"],
        "pixels": (784, 56 * 56),
    },
}

# With which answers are long, and their margins wide.
_SEEDS = {"words": 4, "sight": 3, "whole": 2}


def base_of(folder: Path) -> Any:
    return family_of(folder).model_class().from_pretrained(folder, dtype=torch.float32).eval()


def make_adapter(
    base: Path, folder: Path, *, seed: int = 0, pixels: tuple[int, int] | None = None, **settings: Any
) -> Path:
    """An adapter whose every tensor has moved far enough to change answers."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(**{"init_lora_weights": True, **settings})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)  # PEFT draws the beginning of A
        model = get_peft_model(base_of(base), config)
        generator = torch.Generator().manual_seed(seed)
        for name, weight in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                weight.data += 0.15 * torch.randn(weight.shape, generator=generator)
        model.save_pretrained(folder)
    if pixels is not None:
        settings_of_base = json.loads((base / "preprocessor_config.json").read_text())
        settings_of_base |= {"size": {"shortest_edge": pixels[0], "longest_edge": pixels[1]}}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings_of_base))
    return folder


@lru_cache(maxsize=16)
def adapter_of(base: Path, kind: str) -> Path:
    return make_adapter(base, base.with_name(f"{base.name}-{kind}"), seed=_SEEDS[kind], **KINDS[kind])


def folders_of(base: Path) -> Mapping[str, Path]:
    return {kind: adapter_of(base, kind) for kind in KINDS}


@lru_cache(maxsize=16)
def _with_peft(base: Path, folder: Path) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(base_of(base), folder).eval()


def answer_with(base: Path, folder: Path | None, name: str, tokens: int = TOKENS) -> Plain:
    """What transformers and PEFT answer to one of QUESTIONS with an adapter; without one, transformers alone."""
    processor = _processor(base)
    if folder is None:
        return answer_plainly(processor, base, QUESTIONS[name], tokens)
    seeing = copy(processor)
    seeing.vision = vision_of(processor, folder)
    return answer_plainly(seeing, base, QUESTIONS[name], tokens, model=_with_peft(base, folder))


@lru_cache(maxsize=4)
def _processor(base: Path) -> Any:
    return load_processor(base)
