"""Sightline's `VideoPipeline` with a plan, or without: `plan` and `exact`."""

from __future__ import annotations

import time
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from caching.job import Answer, Job
from sightline.video.cache import StepCache
from sightline.video.pipeline import VideoPipeline
from sightline.video.plan import Plan

_NAMES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


class Engine:
    """A loaded pipeline."""

    def __init__(self, model: str, dtype: str) -> None:
        self.pipe = VideoPipeline.load(model, dtype=_NAMES[dtype], device="cpu")
        self.calls = 0
        self.pipe.components.transformer.blocks[-1].ffn.net[2].register_forward_pre_hook(self._called)

    def versions(self) -> dict[str, str]:
        import diffusers

        import sightline

        return {
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "sightline": sightline.__version__,
        }

    def run(self, job: Job) -> Answer:
        """Denoise, and write the latents."""
        given = load_file(job.inputs)
        request = self.pipe.request(
            "-",
            seed=int(given["seed"]),
            steps=job.steps,
            guidance=job.guidance,
            shift=job.shift,
            width=job.width,
            height=job.height,
            frames=job.frames,
            scheduler="unipc",
        )
        assert torch.equal(self.pipe.noise(request), given["noise"])
        dtype = self.pipe.components.dtype
        texts = {branch: given[branch].to(dtype) for branch in request.branches}
        cache: Any = None
        if job.method == "plan":
            plan = Plan.load(job.knobs["path"])
            cache = StepCache(plan, share=len(texts) > 1)
        self.calls = 0
        started = time.perf_counter()
        latents = self.pipe.denoise(request, texts, cache=cache)
        seconds = time.perf_counter() - started
        save_file({"latents": latents.float().contiguous()}, job.output)
        return Answer(seconds, told={"calls": self.calls})

    def _called(self, module: Any, given: Any) -> None:
        """The end of the last block: this call of the model was computed."""
        self.calls += 1
