"""A generated video, with what it was made of and how long that took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
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

    def save(self, path: str | Path, *, quality: int | None = None, overwrite: bool = False) -> None:
        """Write the frames into one file, at the request's pictures a second; no JSON beside it.

        Args:
            path: its suffix chooses the format: .mp4, .mov, .mkv, .webm, .gif, and .png for one frame.
            quality: of the encoder (crf), lower is nearer and larger; its default without.
            overwrite: replace a video that is there, and remove its JSON.

        Raises:
            UsageError: another suffix, or a quality that the encoder does not have.
            SightlineError: something is there already, a frame is broken, the folder cannot be written to or is full.
        """
        from sightline.video.writing.save import save_alone

        save_alone(self, Path(path), quality=quality, overwrite=overwrite)
