"""Making videos into files: one model and one way to compute, for one request or many."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import first_line
from sightline.progress import note
from sightline.video.plan import Plan
from sightline.video.request import Request
from sightline.video.setting import Setting
from sightline.video.writing.formats import check_suffix
from sightline.video.writing.record import Record
from sightline.video.writing.reserve import free_path
from sightline.video.writing.save import save

if TYPE_CHECKING:
    from torch import Tensor

    from sightline.video.pipeline import OnStep, VideoPipeline

PlanFor = Callable[[Request], "Plan | None"]


@dataclass(frozen=True)
class Order:
    """A request with all that is checked before its long part.

    Attributes:
        setting: what it will be computed with.
        plan: of the step cache, or None.
    """

    request: Request
    setting: Setting
    plan: Plan | None


@dataclass(frozen=True)
class Maker:
    """Makes videos with one pipeline.

    Attributes:
        load: options of `VideoPipeline.load` that made the pipeline; they go into the record.
        plan_for: the step cache's plan for a request.
        plan_anyway: use plans that were found for other generations.
        quality: of the encoder (crf); its default without.
        save_frames: the frames as PNG files too.
        overwrite: replace videos that are there.
        parallel: what a record says of the processes.
        command: the command line, for the record.
        seconds: that belong to every video, `load` for one.
    """

    pipeline: VideoPipeline
    load: Mapping[str, Any]
    plan_for: PlanFor
    plan_anyway: bool = False
    quality: int | None = None
    save_frames: bool = False
    overwrite: bool = False
    parallel: Mapping[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    def order(self, prompt: str, **settings: Any) -> Order:
        """Check a request, and its plan.

        Raises:
            UsageError: a setting out of range.
            SightlineError: the plan is for another generation.
        """
        return self.order_for(self.pipeline.request(prompt, **settings))

    def order_for(self, request: Request) -> Order:
        """The same for a whole request."""
        plan = self.plan_for(request)
        self.pipeline.check(request, plan)
        setting = self.pipeline.setting(request)
        if plan is not None:
            plan.setting.require(setting, anyway=self.plan_anyway)
        return Order(request, setting, plan)

    def make(
        self,
        order: Order,
        path: Path,
        *,
        texts: Mapping[str, Tensor] | None = None,
        on_step: OnStep | None = None,
    ) -> Record | None:
        """Generate and write a video; the record, or None on a rank that does not write.

        Args:
            texts: as `VideoPipeline.encode` gives them, where they are known.

        What is in the way by the time it is done is not replaced: the video goes beside it, and the record's `file`
        is its name.

        Raises:
            SightlineError: it could not be generated or written.
        """
        check_suffix(path, order.request.frames)
        video = self.pipeline.generate(
            order.request, plan=order.plan, plan_anyway=self.plan_anyway, on_step=on_step, texts=texts
        )
        if not self.writes:
            return None
        # Texts that were known took their time elsewhere.
        spent = {part: time for part, time in video.seconds.items() if part != "text" or texts is None}
        record = Record(
            order.request,
            self.load,
            order.setting,
            order.plan,
            self.plan_anyway,
            self.parts,
            self.parallel,
            {**self.seconds, **spent},
            self.command,
            operations=self._operations(order, spent),
        )
        free = free_path(path, overwrite=self.overwrite, save_frames=self.save_frames)
        if free != path:
            note(f"warning: something took {path} while its video was made, so that went into {free}")
        return save(
            video,
            free,
            record,
            quality=self.quality,
            save_frames=self.save_frames,
            overwrite=self.overwrite,
        )

    def _operations(self, order: Order, seconds: Mapping[str, float]) -> dict[str, Any]:
        from sightline.video.roofline import figures

        parts, devices = self.pipeline.components, self.pipeline.layout.world
        try:
            return figures(parts, order.request, seconds, plan=order.plan, devices=devices)
        except Exception as error:  # a figure is not worth a video that is there but for its file
            note(f"warning: what was computed could not be counted: {first_line(error)}")
            return {}

    @cached_property
    def parts(self) -> dict[str, str]:
        """Fingerprints of what stands beside the transformer, for the record."""
        from sightline.video.fingerprint import fingerprint

        parts = self.pipeline.components
        return {name: fingerprint(getattr(parts, name)) for name in ("text_encoder", "vae")}

    @property
    def writes(self) -> bool:
        """Whether this process writes for all."""
        return self.pipeline.layout.leads
