"""transformers by itself: its processor's parts, `generate` over the whole batch or one prompt after the other.

Its AutoProcessor wants torchvision, which a CPU install seldom has, so that tokenizer and picture processor are called
one by one here; they do the same.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
)
from transformers.utils import logging

from offline.engines import Job, Prompt


class _Clock(LogitsProcessor):
    """Notes when each token is about to be chosen; changes nothing."""

    def __init__(self) -> None:
        self.started, self.marks = time.perf_counter(), []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.marks.append(time.perf_counter() - self.started)
        return scores


class Engine:
    caches = False

    def __init__(self, job: Job) -> None:
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        settings = dict(job.settings)
        self.one_by_one = settings.pop("one_by_one", False)
        self.device = torch.device(job.device)
        self.tokenizer = AutoTokenizer.from_pretrained(job.model)
        self.pictures = AutoImageProcessor.from_pretrained(job.model) if job.image_size else None
        self.image_token = AutoConfig.from_pretrained(job.model).image_token_id
        dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[settings.pop("dtype")]
        self.model = AutoModelForImageTextToText.from_pretrained(job.model, dtype=dtype).eval()
        self.model.to(self.device)
        self.marks: list[float] = []
        self.prompt_tokens = 0

    def generate(self, prompts: list[Prompt], new_tokens: int) -> list[list[int]]:
        self.prompt_tokens = 0
        groups = [[prompt] for prompt in prompts] if self.one_by_one else [prompts]
        return [answer for group in groups for answer in self._generate(group, new_tokens)]

    @torch.inference_mode()
    def encode(self, prompt: Prompt) -> float:
        pictures = self.pictures(images=[prompt.image], return_tensors="pt")
        pixels = pictures["pixel_values"].to(self.device, self.model.dtype)
        grid = pictures["image_grid_thw"].to(self.device)
        started = time.perf_counter()
        self.model.model.get_image_features(pixels, grid)
        self._synchronize()
        return time.perf_counter() - started

    def _generate(self, prompts: list[Prompt], new_tokens: int) -> list[list[int]]:
        clock = _Clock()
        inputs = self._inputs(prompts)
        output = self.model.generate(
            **inputs,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            logits_processor=LogitsProcessorList([clock]),
        )
        self._synchronize()
        self.marks = clock.marks
        length = inputs["input_ids"].shape[1]
        self.prompt_tokens += inputs["input_ids"].numel()
        return output[:, length:].tolist()

    def _inputs(self, prompts: list[Prompt]) -> dict[str, torch.Tensor]:
        """All prompts of a measurement have the same length, so that none is padded."""
        inputs: dict[str, Any] = {}
        if prompts[0].ids is not None:
            ids = torch.tensor([prompt.ids for prompt in prompts])
        else:
            pictures = self.pictures(images=[prompt.image for prompt in prompts], return_tensors="pt")
            inputs |= {name: pictures[name] for name in ("pixel_values", "image_grid_thw")}
            tokens = pictures["image_grid_thw"].prod(1) // self.pictures.merge_size**2
            ids = torch.tensor([self._ids(p.text, int(n)) for p, n in zip(prompts, tokens, strict=True)])
            inputs["mm_token_type_ids"] = (ids == self.image_token).int()
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}

    def _ids(self, text: str | None, tokens: int) -> list[int]:
        found: list[int] = self.tokenizer(text)["input_ids"]
        place = found.index(self.image_token)
        return [*found[:place], *[self.image_token] * tokens, *found[place + 1 :]]

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
