"""How many images and clips a prompt may bring, and how large: what `limit_mm_per_prompt` says.

The largest medium that is let through is what memory is measured for before the first request, so nothing
larger may come later: whatever takes more vision tokens is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sightline.data.media import Budget, MediaError
from sightline.data.vision import MAX_ASPECT_RATIO, image_grid, tokens, video_grid, video_limits
from sightline.data.vision_spec import VisionSpec
from sightline.engine.inputs import Prompt
from sightline.errors import UsageError
from sightline.models.patches import Layout

KINDS = ("image", "video")


@dataclass(frozen=True)
class MediaLimit:
    """Of one kind; None is no limit. Sizes in pixels; `frames` are those that the model sees."""

    count: int | None = None
    width: int | None = None
    height: int | None = None
    frames: int | None = None

    def __str__(self) -> str:
        size = [f"{self.width}x{self.height}"] if self.width else []
        return " of ".join([*([f"{self.frames} frames"] if self.frames else []), *size])


@dataclass(frozen=True)
class MediaLimits:
    """The limits of both kinds."""

    image: MediaLimit = field(default_factory=MediaLimit)
    video: MediaLimit = field(default_factory=MediaLimit)

    @classmethod
    def parse(cls, given: Mapping[str, Any] | None) -> MediaLimits:
        """{"image": 4} or {"image": {"count", "width", "height"}, "video": {.. and "num_frames"}}.

        Raises:
            UsageError: anything else; the text says what.
        """
        given = given or {}
        unknown = set(given) - set(KINDS)
        if unknown:
            raise UsageError(f"limit_mm_per_prompt has {min(unknown)!r}; known are image and video")
        return cls(**{kind: _limit(kind, limit) for kind, limit in given.items()})

    def of(self, kind: str) -> MediaLimit:
        return self.image if kind == "image" else self.video

    def check(self, prompt: Prompt) -> None:
        """Raises UsageError where a prompt brings more media than it may."""
        for kind, found in (("image", len(prompt.media.images)), ("video", len(prompt.media.videos))):
            most = self.of(kind).count
            if most is not None and found > most:
                raise UsageError(f"the prompt has {found} {kind}s, but limit_mm_per_prompt allows {most}")

    def check_size(self, spec: VisionSpec, layout: Layout, name: str) -> None:
        """Raises UsageError where one medium takes more vision tokens than memory was measured for.

        Args:
            name: of the medium in the message: "image 2 of the prompt".
        """
        kind, limit = layout.kind, self.of(layout.kind)
        most = largest_image(spec, limit) if kind == "image" else largest_video(spec, limit)
        if layout.tokens <= most:
            return
        by_limit = f"limit_mm_per_prompt of {kind} ({limit})"
        setting = by_limit if str(limit) else f"the pixel limit of this model (max_pixels {spec.max_pixels})"
        raise UsageError(
            f"{name} takes {layout.tokens} vision tokens, but {setting} allows {most}; "
            f"give a smaller {kind} or lower its max_pixels"
        )

    def largest_image_tokens(self, spec: VisionSpec) -> int:
        """Most vision tokens of an image that is let through; 0 where none is."""
        return 0 if self.image.count == 0 else largest_image(spec, self.image)

    def largest_video_tokens(self, spec: VisionSpec) -> int:
        """Most vision tokens of a clip that is let through; 0 where none is."""
        return 0 if self.video.count == 0 else largest_video(spec, self.video)


@lru_cache(maxsize=32)
def largest_image(spec: VisionSpec, limit: MediaLimit) -> int:
    most = _largest_area(spec.max_pixels / spec.factor**2, spec.min_pixels / spec.factor**2)
    if limit.width and limit.height:
        most = min(most, tokens(spec, image_grid(spec, limit.width, limit.height)))
    return most


@lru_cache(maxsize=32)
def largest_video(spec: VisionSpec, limit: MediaLimit) -> int:
    group = spec.temporal_patch_size
    longest = min(limit.frames or spec.video_max_frames, spec.video_max_frames)
    # Longer clips get smaller frames, so the longest need not be the largest.
    lengths = range(group, max(longest, group) + 1, group)
    return max(_largest_clip(spec, frames, limit) for frames in lengths)


def _largest_clip(spec: VisionSpec, frames: int, limit: MediaLimit) -> int:
    """Vision tokens of the largest clip of so many frames."""
    if limit.width and limit.height:
        return tokens(spec, video_grid(spec, frames, limit.width, limit.height))
    per_token = spec.factor**2 * (frames if spec.clip_limits else 1)
    least, most = (pixels / per_token for pixels in video_limits(spec, frames))
    return frames // spec.temporal_patch_size * _largest_area(most, least)


def _largest_area(most: float, least: float) -> int:
    """Most vision tokens of one picture between these limits, which are in tokens too.

    The limits hold but for the rounding of `smart_resize`: the short side of a thin picture is at least one
    token, and sides that are scaled up are rounded up.
    """
    thin = math.sqrt(most * MAX_ASPECT_RATIO)
    least = min(least, most)
    up = least + math.sqrt(least * MAX_ASPECT_RATIO) + math.sqrt(least / MAX_ASPECT_RATIO) + 1
    return math.floor(max(most, min(thin, MAX_ASPECT_RATIO), up))


def check_pixels(pixels: dict[str, int], budget: Budget) -> None:
    """Bound what one prompt makes us decode: small files may hold many millions of pixels each.

    Args:
        pixels: those of the "image"s and "video"s that are not decoded yet, each kind added up.

    Raises:
        MediaError: more than the budget has for a prompt.
    """
    limits = (
        ("image", budget.max_total_pixels, "scale them down"),
        ("video", budget.max_clip_pixels, "shorten them"),
    )
    for kind, most, advice in limits:
        if pixels[kind] > most:
            raise MediaError(
                f"the prompt's {kind}s have {pixels[kind]:,} pixels to decode, more than the {most:,} allowed in "
                f"all; give fewer or {advice}",
                "too-large",
            )


def _limit(kind: str, given: Any) -> MediaLimit:
    where = f"limit_mm_per_prompt of {kind}"
    if not isinstance(given, Mapping):
        return MediaLimit(count=_whole(where, given, given, 0))
    known = ("count", "width", "height") + (("num_frames",) if kind == "video" else ())
    unknown = set(given) - set(known)
    if unknown:
        raise UsageError(f"{where} has {min(unknown)!r}; known are {', '.join(known)}")
    if ("width" in given) != ("height" in given):
        raise UsageError(f"{where} needs width and height together")
    read = {name: _whole(where, value, given, 0 if name == "count" else 1) for name, value in given.items()}
    return MediaLimit(read.get("count"), read.get("width"), read.get("height"), read.get("num_frames"))


def _whole(where: str, value: Any, given: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{where} must be a whole number from {least}, not {given!r}")
    return value
