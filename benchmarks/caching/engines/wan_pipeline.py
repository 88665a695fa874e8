"""diffusers' own `WanPipeline`, bare and with each of its caches: `exact`, `first_block`, `taylor`, `mag`, `sea`."""

from __future__ import annotations

import contextlib
import io
import re
import time
from collections.abc import Iterator
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from caching.job import Answer, Job

# Wan's modules by name. The default of TaylorSeer matches names that end in `attn`, of which Wan has none.
_PARTS = [r"blocks\.\d+\.(attn1|attn2|ffn)"]


class Engine:
    """A loaded pipeline; caches are switched on for a job and off after it."""

    def __init__(self, model: str, dtype: str) -> None:
        from diffusers import WanPipeline

        self.pipe = WanPipeline.from_pretrained(
            model, text_encoder=None, tokenizer=None, torch_dtype=getattr(torch, dtype)
        )
        self.pipe.transformer.eval()
        self.seconds, self.calls = 0.0, 0
        self.pipe.transformer.blocks[-1].ffn.net[2].register_forward_pre_hook(self._called)
        # The pipeline opens its progress bar right before the loop and closes it right behind.
        self.pipe.progress_bar = self._bar

    def versions(self) -> dict[str, str]:
        import diffusers

        return {"torch": torch.__version__, "diffusers": diffusers.__version__}

    def run(self, job: Job) -> Answer:
        """Denoise, and write the latents."""
        self.calls = 0
        with self.cached(job) as told:
            latents = self.denoise(job)
        told["calls"] = self.calls
        save_file({"latents": latents.float().contiguous()}, job.output)
        return Answer(self.seconds, told=told)

    def denoise(self, job: Job) -> torch.Tensor:
        given = load_file(job.inputs)
        scheduler = self.pipe.scheduler
        self.pipe.scheduler = type(scheduler).from_config(scheduler.config, flow_shift=job.shift)
        return self.pipe(
            prompt_embeds=given["cond"],
            negative_prompt_embeds=given["uncond"],
            latents=given["noise"],
            height=job.height,
            width=job.width,
            num_frames=job.frames,
            num_inference_steps=job.steps,
            guidance_scale=job.guidance,
            output_type="latent",
            return_dict=False,
        )[0]

    @contextlib.contextmanager
    def cached(self, job: Job) -> Iterator[dict[str, Any]]:
        """The transformer with the job's cache; yields what there will be to tell."""
        told: dict[str, Any] = {}
        if job.method == "exact":
            yield told
            return
        config = configured(job)
        printed = io.StringIO()
        self.pipe.transformer.enable_cache(config)
        try:
            with contextlib.redirect_stdout(printed):
                yield told
        finally:
            self.pipe.transformer.disable_cache()
        if job.knobs.get("calibrate"):
            told["mag_ratios"] = calibrated(printed.getvalue())

    def _called(self, module: Any, given: Any) -> None:
        """The end of the last block: whatever else was skipped, this call of the model was computed."""
        self.calls += 1

    @contextlib.contextmanager
    def _bar(self, iterable: Any = None, total: int | None = None) -> Iterator[Any]:
        started = time.perf_counter()
        yield _Silent()
        self.seconds = time.perf_counter() - started


class _Silent:
    def update(self, count: int = 1) -> None:
        """Nothing to show."""


def configured(job: Job) -> Any:
    """diffusers' configuration of a cache."""
    import diffusers

    knobs = dict(job.knobs)
    if job.method == "first_block":
        return diffusers.FirstBlockCacheConfig(**knobs)
    if job.method == "mag":
        return diffusers.MagCacheConfig(num_inference_steps=job.steps, **knobs)
    if job.method == "taylor":
        if knobs.pop("parts", False):
            knobs["cache_identifiers"] = _PARTS
        # Of the dtype that is computed in: its default is bfloat16.
        return diffusers.TaylorSeerCacheConfig(taylor_factors_dtype=torch.float32, **knobs)
    if job.method == "sea":
        # It has an adapter for one other model only; this is what its documentation asks of the rest.
        return diffusers.SeaCacheConfig(raw_vision_callback=_latents, **knobs)
    raise ValueError(f"no method {job.method!r}")


def _latents(module: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> list[torch.Tensor]:
    return list(named["hidden_states"] if "hidden_states" in named else arguments[0])


def calibrated(printed: str) -> list[float]:
    """The ratios that MagCache prints to be copied, one list a branch; the first is that of the prompt."""
    found = re.findall(r"^\[[-\d., e+]+\]$", printed, flags=re.M)
    if not found:
        raise ValueError(f"MagCache printed no ratios but {printed[:200]!r}")
    return [float(value) for value in found[0].strip("[]").split(",")]
