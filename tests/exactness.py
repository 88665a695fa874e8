"""What transformers answers by itself, and engines of many settings around one loaded model: the proof's two sides."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Pillow

from sightline.data.conversation import Conversation, Image, Message, Part, Text, Video
from sightline.engine.assembly import Parts, assemble, load
from sightline.engine.settings import EngineSettings
from sightline.models.families import family_of
from sightline.models.loading import VisionLanguageModel
from sightline.models.processor import Processor
from sightline.models.quantization.module import quantize_module

TOKENS = 16
# A greedy choice nearer than this to the second best could fall either way by rounding: no proof of anything.
_LEAST_MARGIN = 2e-4


def picture(width: int, height: int, seed: int) -> Pillow.Image:
    return Pillow.frombytes("RGB", (width, height), random.Random(seed).randbytes(3 * width * height))


def clip(frames: int, seed: int, *, width: int = 60, height: int = 60, fps: float = 2.0) -> Video:
    return Video(tuple(picture(width, height, seed + index) for index in range(frames)), fps=fps)


def ask(*parts: Part) -> Conversation:
    return Conversation([Message("user", list(parts))])


def photo(width: int, height: int, seed: int, **limits: int) -> Image:
    return Image(picture(width, height, seed), **limits)


@lru_cache(maxsize=3)
def plain(folder: Path) -> Any:
    """The checkpoint as transformers runs it by itself."""
    return family_of(folder).model_class().from_pretrained(folder, dtype=torch.float32).eval()


@dataclass
class Plain:
    """What transformers answers to a prompt.

    Attributes:
        margin: least distance of a chosen logit to the second best.
    """

    prompt: list[int]
    tokens: list[int]
    margin: float
    inputs: dict[str, Any]  # what the model was called with


def answer_plainly(
    processor: Processor,
    folder: Path,
    conversation: Conversation,
    tokens: int = TOKENS,
    *,
    model: Any = None,
    **options: Any,
) -> Plain:
    """transformers' own greedy generate, fed with what its processor would give; `model` is the folder's by default."""
    encoded = processor.encode(conversation, supervise=False)
    inputs: dict[str, Any] = {
        "input_ids": encoded.input_ids[None],
        "attention_mask": torch.ones_like(encoded.input_ids)[None],
        "mm_token_type_ids": encoded.kinds[None],
    }
    for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        if getattr(encoded, name) is not None:
            inputs[name] = getattr(encoded, name)
    if encoded.second_per_grid_ts and processor.family.clip_seconds:
        inputs["second_per_grid_ts"] = torch.tensor(encoded.second_per_grid_ts)
    options = {
        "do_sample": False,
        "eos_token_id": processor.tokenizer.eos_token_id,
        "pad_token_id": 0,
        "output_scores": True,
        "return_dict_in_generate": True,
    } | options
    with torch.inference_mode():
        found = (model or plain(folder)).generate(**inputs, max_new_tokens=tokens, **options)
    best = torch.cat(found.scores).topk(2).values
    prompt = encoded.input_ids.tolist()
    return Plain(prompt, found.sequences[0, len(prompt) :].tolist(), float(best.diff().abs().min()), inputs)


_LEFT, _RIGHT = photo(64, 64, 1), photo(64, 64, 2)
_CLIP = clip(5, 4)
# Prompts that share beginnings, pictures and sizes, so that a cache that mixes two of them up gives a wrong answer.
QUESTIONS: dict[str, Conversation] = {
    "short": ask(Text("a")),
    "text": ask(Text("what shape is in the image?")),
    "long": ask(Text("is there a red circle or a blue square? " * 8)),
    "system": Conversation([Message("system", [Text("be brief")]), Message("user", [Text("yes or no")])]),
    "picture": ask(_LEFT, Text("is it red?")),
    "of one size": ask(_RIGHT, Text("is it red?")),
    "smaller": ask(photo(150, 150, 1, max_pixels=56 * 84), Text("is it red?")),
    "wide": ask(Text("see"), photo(120, 60, 2), Text("is it red?")),
    "tall": ask(Text("see"), photo(60, 120, 2), Text("is it red?")),
    "twice": ask(_LEFT, Text("and"), _LEFT, Text("?")),
    "swapped": ask(_RIGHT, _LEFT, Text("is it red?")),
    "odd sizes": ask(photo(57, 99, 3), Text("this? " * 9), photo(131, 37, 4), photo(23, 29, 5), Text("?")),
    "clip": ask(_CLIP, Text("what happens?")),
    "slower": ask(replace(_CLIP, fps=0.5), Text("what happens?")),
    "both": ask(Text("compare"), clip(2, 9), photo(200, 40, 5), Text("yes or no")),
    "clips": ask(_CLIP, Text("then"), clip(3, 7, width=91, height=47), _LEFT, Text("the same?")),
    "turns": Conversation(
        [
            Message("user", [_LEFT, Text("is it red?")]),
            Message("assistant", [Text("yes")]),
            Message("user", [Text("and this?"), _CLIP]),
        ]
    ),
}


class Bench:
    """One checkpoint: its plain answers, and engines around its model, which is loaded once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model: VisionLanguageModel = load(EngineSettings.of(folder, dtype="fp32", device="cpu"))
        self._plain: dict[str, Plain] = {}
        self._scores: dict[str, list[float]] = {}

    def plain(self, name: str) -> Plain:
        if name not in self._plain:
            found = answer_plainly(self.model.processor, self.folder, QUESTIONS[name])
            assert found.margin > _LEAST_MARGIN, (
                f"{name}: rounding may decide ({found.margin}); change its pictures"
            )
            self._plain[name] = found
        return self._plain[name]

    def prompt_scores(self, name: str) -> list[float]:
        """Log probability of each prompt token but the first."""
        if name not in self._scores:
            with torch.inference_mode():
                logits = plain(self.folder)(**self.plain(name).inputs).logits[0]
            following = torch.tensor(self.plain(name).prompt[1:])
            scores = logits[:-1].log_softmax(-1).gather(1, following[:, None])
            self._scores[name] = scores[:, 0].tolist()
        return self._scores[name]

    def parts(self, *, quantization: str | None = None, **settings: Any) -> Parts:
        """An engine; a runner rewrites the module that it is given, so that each has a copy of its own."""
        chosen = EngineSettings.of(self.folder, dtype="fp32", device="cpu", **settings)
        module = copy.deepcopy(self.model.module)
        if quantization:
            quantize_module(module, quantization)
        return assemble(chosen, replace(self.model, module=module))

    def blocks_for(self, names: Iterable[str], block_size: int) -> int:
        """Blocks that the longest of these prompts needs with its answer."""
        longest = max(len(self.plain(name).prompt) for name in names) + TOKENS
        return -(-longest // block_size)

    def bytes_of(self, blocks: int, block_size: int) -> int:
        config = self.model.processor.config.get_text_config()
        head = config.hidden_size // config.num_attention_heads
        row = 2 * config.num_hidden_layers * config.num_key_value_heads * head * 4
        return int(blocks * block_size * row)


@lru_cache(maxsize=3)
def bench(folder: Path) -> Bench:
    return Bench(folder)
