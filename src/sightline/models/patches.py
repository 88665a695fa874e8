"""One image or clip on its way to the vision tower, in steps that can be timed and kept apart.

planned from its header (`plan_medium`), opened (`open_medium`: decoded, frames of a clip sampled and scaled),
cut into patches (`patch_medium`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from sightline.data.conversation import Image, Video
from sightline.data.media import DEFAULT, Budget
from sightline.data.vision import (
    Grid,
    image_grid,
    patch_image,
    patch_video,
    resize_frame,
    tokens,
    video_grid,
    video_size_for,
)
from sightline.data.vision_spec import VisionSpec


@dataclass(frozen=True)
class Layout:
    """What a medium takes in a prompt.

    Attributes:
        kind: "image" or "video".
        grid: its patches in time, height and width.
        tokens: its vision tokens.
        times: seconds at which each temporal patch of a clip is announced.
        seconds_per_patch: between a clip's temporal patches.
        pixels: that have to be decoded for it, where it was planned from a header; 0 where it was decoded already.
    """

    kind: str
    grid: Grid
    tokens: int
    times: tuple[float, ...] = ()
    seconds_per_patch: float = 0.0
    pixels: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Patched:
    """A medium ready for the tower; `patches` is float [patches, values], shared and never written to."""

    layout: Layout
    patches: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.patches.nbytes


def plan_medium(spec: VisionSpec, medium: Image | Video, budget: Budget = DEFAULT) -> Layout:
    """From the header alone.

    Raises:
        MediaError: it cannot be read. SightlineError: the model refuses its shape.
    """
    from sightline.data.images import image_size
    from sightline.data.videos import plan_video

    if isinstance(medium, Image):
        width, height = image_size(medium.source, budget)
        return replace(_still(spec, image_grid(spec, width, height, medium)), pixels=width * height)
    plan = plan_video(medium, **_sampling(spec), budget=budget)
    grid = video_grid(spec, len(plan.timestamps), plan.width, plan.height, medium)
    layout = _clip(spec, grid, plan.timestamps, plan.sampled_fps)
    return replace(layout, pixels=plan.decoded * plan.width * plan.height)


def open_medium(spec: VisionSpec, medium: Image | Video, budget: Budget = DEFAULT) -> Any:
    """A PIL picture, or a clip's `Frames`, scaled already.

    Raises:
        MediaError: it cannot be read. SightlineError: the model refuses its shape.
    """
    from sightline.data.images import open_image
    from sightline.data.videos import load_video, plan_video

    if isinstance(medium, Image):
        return open_image(medium.source, budget)
    plan = plan_video(medium, **_sampling(spec), budget=budget)
    height, width = video_size_for(spec, len(plan.timestamps), plan.width, plan.height, medium)
    # Resized as they are decoded: the whole clip at full size may take gigabytes.
    shrink = partial(resize_frame, spec, height=height, width=width)
    return load_video(medium, **_sampling(spec), budget=budget, transform=shrink)


def patch_medium(spec: VisionSpec, medium: Image | Video, opened: Any) -> Patched:
    """What `open_medium` gave as float32 patches.

    Raises:
        SightlineError: the model refuses its shape.
    """
    if isinstance(medium, Image):
        patches, grid = patch_image(spec, opened, medium)
        return Patched(_still(spec, grid), torch.from_numpy(patches))
    width, height = opened.images[0].size
    patches, grid = patch_video(spec, opened.images, size=(height, width))
    return Patched(_clip(spec, grid, opened.timestamps, opened.sampled_fps), torch.from_numpy(patches))


def joined(media: Sequence[Patched]) -> torch.Tensor | None:
    """float [patches of all media, values], or None; a single medium's own, not copied."""
    if len(media) < 2:
        return media[0].patches if media else None
    return torch.cat([medium.patches for medium in media])


def _still(spec: VisionSpec, grid: Grid) -> Layout:
    return Layout("image", grid, tokens(spec, grid))


def _clip(spec: VisionSpec, grid: Grid, timestamps: list[float], fps: float) -> Layout:
    group = spec.temporal_patch_size
    padded = timestamps + [timestamps[-1]] * (-len(timestamps) % group)
    # A temporal patch is announced by the middle between its first and its last frame.
    times = tuple((padded[i] + padded[i + group - 1]) / 2 for i in range(0, len(padded), group))
    return Layout("video", grid, tokens(spec, grid), times, group / fps)


def _sampling(spec: VisionSpec) -> dict[str, Any]:
    return {
        "fps": spec.video_fps,
        "min_frames": spec.video_min_frames,
        "max_frames": spec.video_max_frames,
    }
