"""The runner of a real search: `VideoPipeline`, with the texts encoded once."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sightline.video.cache import StepCache
from sightline.video.search.measure import Generation, Subject
from sightline.video.search.probe import Probe
from sightline.video.search.record import ProbeRecord

if TYPE_CHECKING:
    from torch import Tensor

    from sightline.video.pipeline import VideoPipeline
    from sightline.video.plan import Plan
    from sightline.video.request import Request
    from sightline.video.setting import Setting


class PipelineRunner:
    """Generates with a pipeline in this process.

    Args:
        pipeline: of a single process.
        settings: fields of `Request` but for prompt and seed; None means the model's default.
    """

    def __init__(self, pipeline: VideoPipeline, settings: Mapping[str, Any]) -> None:
        self.pipeline, self.settings = pipeline, dict(settings)
        self._texts: dict[str, tuple[dict[str, Tensor], float]] = {}

    def request(self, subject: Subject) -> Request:
        return self.pipeline.request(subject.prompt, **(self.settings | {"seed": subject.seed}))

    def setting(self) -> Setting:
        return self.pipeline.setting(self.pipeline.request("a video", **self.settings))

    def run(self, plan: Plan | None, subject: Subject) -> Generation:
        request = self.request(subject)
        if plan is not None and plan.steps != request.steps:
            request = replace(request, steps=plan.steps)
        texts, text_seconds = self._encoded(request)
        share = len(request.branches) > 1
        cache = StepCache(plan, share=share) if plan is not None and plan.actions else None
        self.pipeline.accelerator.synchronize()
        begun = time.perf_counter()
        latents = self.pipeline.denoise(request, texts, cache=cache)
        self.pipeline.accelerator.synchronize()
        return Generation(latents.cpu(), text_seconds, time.perf_counter() - begun)

    def probe(self, subject: Subject, steps: int) -> ProbeRecord:
        request = replace(self.request(subject), steps=steps)
        texts, _ = self._encoded(request)
        transformer = self.pipeline.components.transformer
        probe = Probe(
            len(transformer.blocks),
            request.steps,
            len(request.branches),
            self.pipeline.accelerator.synchronize,
        )
        with probe.installed(transformer):
            self.pipeline.denoise(request, texts, on_step=probe.on_step)
        return probe.record()

    def decode(self, latents: Tensor) -> tuple[Tensor, float]:
        begun = time.perf_counter()
        frames = self.pipeline.decode(latents.to(self.pipeline.components.device))
        return frames, time.perf_counter() - begun

    def _encoded(self, request: Request) -> tuple[dict[str, Tensor], float]:
        """Texts and the seconds of encoding them, the first time."""
        if request.prompt not in self._texts:
            self.pipeline.accelerator.synchronize()
            begun = time.perf_counter()
            texts = self.pipeline.encode(request)
            self.pipeline.accelerator.synchronize()
            self._texts[request.prompt] = (texts, time.perf_counter() - begun)
        return self._texts[request.prompt]
