"""What a checkpoint says about its vision input: patch sizes, pixel limits, normalisation."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sightline.data.vision_settings import (
    IMAGE_FILE,
    JOINT_FILE,
    VIDEO_FILE,
    Section,
    Settings,
    common_values,
    limit_values,
    read_settings,
    settings_in,
    whole_number,
)
from sightline.errors import SightlineError, UsageError
from sightline.files import write_json

_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class VisionSpec:
    """All that turns pixels into patches. Sizes are in pixels.

    The video limits count differently by family, which `clip_limits` says.

    * Qwen2-VL, Qwen2.5-VL (false): they bound each frame, and `video_total_pixels` bounds the clip,
      counting one picture for each temporal patch. It changes only clips of more than 300 frames (150 s at
      2 frames a second), which at the frame's limit would overrun the 128,000 tokens that the models were
      made for.
    * Qwen3-VL (true): they bound the clip as a whole, and `video_frame_pixels` bounds each frame. Without
      it a short clip may spend the whole budget on a few sharp frames, as in transformers unless told
      otherwise; so it is off unless the checkpoint or the user sets it.

    Both bounds are `cap_pixels_per_frame` of transformers (the only behaviour of qwen-vl-utils); None is off.
    """

    model_type: str
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    image_mean: tuple[float, ...] = _CLIP[0]
    image_std: tuple[float, ...] = _CLIP[1]
    rescale_factor: float = 1 / 255
    resample: int = 3
    video_min_pixels: int = 128 * 28 * 28
    video_max_pixels: int = 768 * 28 * 28
    video_total_pixels: int | None = None
    video_frame_pixels: int | None = None
    video_fps: float = 2.0
    video_min_frames: int = 4
    video_max_frames: int = 768
    clip_limits: bool = False
    max_pixels_source: str = "default"

    @property
    def factor(self) -> int:
        """Side in pixels of the square that one vision token covers."""
        return self.patch_size * self.merge_size

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        model_type: str,
        *,
        max_pixels: int | None = None,
        min_pixels: int | None = None,
    ) -> VisionSpec:
        """Read the processor files of a checkpoint.

        The pixel limit is `max_pixels` if given, else the variable `MAX_PIXELS`, else the checkpoint's;
        `max_pixels_source` says which. Likewise `min_pixels`.

        A folder without video settings (Qwen2-VL and Qwen2.5-VL as published) gets the video limits of
        qwen-vl-utils, with which these models were measured. transformers would there apply the image
        limits to every frame, up to 16,384 tokens each, so that a clip of a few seconds overruns the
        context.

        Raises:
            SightlineError: the files are not JSON objects or ask for what is not supported.
            UsageError: a limit of the user is not a positive whole number.
        """
        image, video = read_settings(Path(folder))
        spec = _with_common(_DEFAULTS.get(model_type, cls(model_type)), image, video)
        limits: dict[str, Any] = dict(limit_values(image))
        spec = replace(spec, **limits)
        if "max_pixels" in limits:
            spec = replace(spec, max_pixels_source="checkpoint")
        return _with_video(spec, video).limited(max_pixels, min_pixels)

    def limited(self, max_pixels: int | None, min_pixels: int | None) -> VisionSpec:
        """With the user's limits: the arguments first, then MAX_PIXELS, MIN_PIXELS and VIDEO_MAX_PIXELS.

        A limit on pictures bounds the frames of a clip too; VIDEO_MAX_PIXELS (per frame) bounds only these.
        """
        spec = self
        most, source = _chosen(max_pixels, "max_pixels", "MAX_PIXELS")
        least, _ = _chosen(min_pixels, "min_pixels", "MIN_PIXELS")
        if most is not None:
            frame = min(spec.frame_limit or most, most)
            spec = replace(spec, max_pixels=most, max_pixels_source=source)._with_frame_limit(frame)
        if least is not None:
            spec = replace(spec, min_pixels=least)
        video_most, _ = _chosen(None, "", "VIDEO_MAX_PIXELS")
        if video_most is not None:
            spec = spec._with_frame_limit(video_most)
        if spec.min_pixels > spec.max_pixels:
            if least is not None:
                raise UsageError(f"min_pixels {spec.min_pixels} is above max_pixels {spec.max_pixels}")
            spec = replace(spec, min_pixels=spec.max_pixels)
        return replace(spec, video_min_pixels=min(spec.video_min_pixels, spec.video_max_pixels))

    @property
    def frame_limit(self) -> int | None:
        """The most pixels of one frame of a clip, if frames have a limit of their own."""
        return self.video_frame_pixels if self.clip_limits else self.video_max_pixels

    def _with_frame_limit(self, pixels: int) -> VisionSpec:
        if self.clip_limits:
            # Whole tokens, for that is how a checkpoint records it.
            return replace(self, video_frame_pixels=max(1, pixels // self.factor**2) * self.factor**2)
        return replace(self, video_max_pixels=pixels)


_DEFAULTS = {
    **{
        name: VisionSpec(name, video_total_pixels=int(128_000 * 28 * 28 * 0.9))
        for name in ("qwen2_vl", "qwen2_5_vl")
    },
    "qwen3_vl": VisionSpec(
        "qwen3_vl",
        patch_size=16,
        min_pixels=256 * 256,
        max_pixels=4096 * 4096,
        image_mean=_HALF[0],
        image_std=_HALF[1],
        # Those of the published checkpoints; the default of transformers leaves a clip 384 tokens.
        video_min_pixels=4 * 32 * 32,
        video_max_pixels=24_576 * 32 * 32,
        clip_limits=True,
    ),
}


def record_limits(spec: VisionSpec, base: Path, output: Path) -> None:
    """Write the base's processor files into `output` with the limits of `spec`, all other keys kept.

    The limits stand both as `min_pixels` and `max_pixels` and as `size`: versions of transformers differ in
    what they read. Clips get `video_preprocessor_config.json` even where the base has none: transformers
    would else apply the image limits to each frame. Files that the base lacks are made from `spec`.

    Raises:
        SightlineError: a file of the base cannot be read or one of the output cannot be written.
    """
    read_image, read_video = read_settings(base)
    limits = _recorded(spec.min_pixels, spec.max_pixels)
    image = {**(read_image.values or _described(spec, "Image")), **limits}
    video = {**(read_video.values or _described(spec, "Video")), **_recorded_video(spec)}
    write_json(output / IMAGE_FILE, image)
    write_json(output / VIDEO_FILE, video)
    joint = settings_in(base / JOINT_FILE)
    for name, settings in (("image_processor", image), ("video_processor", video)):
        if joint.get(name):
            joint[name] = settings
    if joint:
        write_json(output / JOINT_FILE, joint)


def _recorded(least: int, most: int) -> Settings:
    return {"min_pixels": least, "max_pixels": most, "size": {"shortest_edge": least, "longest_edge": most}}


def _recorded_video(spec: VisionSpec) -> Settings:
    limits = _recorded(spec.video_min_pixels, spec.video_max_pixels)
    if not spec.clip_limits:
        return limits
    # Qwen3-VL's video processor knows `size` alone; its cap counts tokens of a frame.
    if spec.video_frame_pixels is None:
        return {"size": limits["size"]}
    tokens = spec.video_frame_pixels // spec.factor**2
    return {"size": limits["size"], "cap_pixels_per_frame": True, "max_video_tokens": tokens}


def _described(spec: VisionSpec, medium: str) -> Settings:
    family = "Qwen3VL" if spec.clip_limits and medium == "Video" else "Qwen2VL"
    return {
        f"{medium.lower()}_processor_type": f"{family}{medium}Processor",
        "patch_size": spec.patch_size,
        "temporal_patch_size": spec.temporal_patch_size,
        "merge_size": spec.merge_size,
        "image_mean": list(spec.image_mean),
        "image_std": list(spec.image_std),
        "rescale_factor": spec.rescale_factor,
        "resample": spec.resample,
    }


def _with_common(spec: VisionSpec, image: Section, video: Section) -> VisionSpec:
    if not image.values:
        return replace(spec, **common_values(video))
    spec = replace(spec, **common_values(image))
    for name, value in common_values(video).items():
        if value != getattr(spec, name):
            raise SightlineError(
                f"{video.place}: {name} is {value} for videos but {getattr(spec, name)} for images"
            )
    return spec


def _with_video(spec: VisionSpec, video: Section) -> VisionSpec:
    # Qwen3-VL's video processor knows `size` alone.
    limits = limit_values(video, only_size=spec.clip_limits)
    values: dict[str, Any] = {f"video_{name}": value for name, value in limits.items()}
    for name in ("min_frames", "max_frames"):
        if video.values.get(name) is not None:
            values[f"video_{name}"] = whole_number(video.values[name], f"{video.place}: {name}")
    fps = video.values.get("fps")
    if fps is not None:
        if isinstance(fps, bool) or not isinstance(fps, (int, float)) or fps <= 0:
            raise SightlineError(f"{video.place}: fps must be a positive number, not {fps!r}")
        values["video_fps"] = float(fps)
    return _with_cap(replace(spec, **values), video)


def _with_cap(spec: VisionSpec, video: Section) -> VisionSpec:
    wanted, tokens = video.values.get("cap_pixels_per_frame"), video.values.get("max_video_tokens")
    if tokens is not None:
        tokens = whole_number(tokens, f"{video.place}: max_video_tokens")
    area = spec.factor**2
    if spec.clip_limits:
        return replace(spec, video_frame_pixels=(tokens or 768) * area if wanted else None)
    # Off only where the checkpoint says so: on is to become the default of transformers.
    total = None if wanted is False else int((tokens or 128_000) * area * 0.9)
    return replace(spec, video_total_pixels=total)


def _chosen(option: int | None, name: str, variable: str) -> tuple[int | None, str]:
    if option is not None:
        return _positive(option, name), "option"
    text = os.environ.get(variable)
    if text:
        return _positive(text, f"the variable {variable}"), variable
    return None, ""


def _positive(value: int | str, name: str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number <= 0:
        raise UsageError(f"{name} must be a positive whole number of pixels, not {value!r}")
    return number
