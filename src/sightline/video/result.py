"""A generated video, with what it was made of and how long that took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sightline.video.plan import Plan
from sightline.video.request import Request
from sightline.video.setting import Setting

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Video:
    """What `VideoPipeline.generate` gives.

    Attributes:
        frames: [F, 3, H, W] in [0, 1], float32, in host memory.
        latents: [1, C, F', H', W'] in float32.
        request, setting: what it was asked for, and what with that makes it again.
        plan: the step cache's, or None where every step was computed.
        seconds: by part: `text`, `denoise`, `decode`.
    """

    frames: Tensor = field(repr=False)  # thousands of lines of numbers
    latents: Tensor = field(repr=False)
    request: Request
    setting: Setting
    plan: Plan | None
    seconds: Mapping[str, float]
