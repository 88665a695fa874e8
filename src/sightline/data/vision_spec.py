"""What a checkpoint says about its vision input: patch sizes, pixel limits, normalisation."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sightline.errors import SightlineError, UsageError

_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(frozen=True)
class VisionSpec:
    """Sizes are in pixels. `clip_limits` says whether video limits count a whole clip (Qwen3-VL) or a frame."""

    model_type: str
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    image_mean: tuple[float, ...] = _CLIP[0]
    image_std: tuple[float, ...] = _CLIP[1]
    video_min_pixels: int = 128 * 28 * 28
    video_max_pixels: int = 768 * 28 * 28
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

        Raises:
            SightlineError: the files are not JSON objects, or a limit is not a positive whole number.
        """
        folder = Path(folder)
        image, video = _settings(folder)
        spec = _DEFAULTS.get(model_type, cls(model_type))
        spec = replace(spec, **_read_common(image), **_read_limits(image, ""), **_read_limits(video, "video_"))
        if "min_pixels" in image or "max_pixels" in image or "size" in image:
            spec = replace(spec, max_pixels_source="checkpoint")
        return spec.limited(max_pixels, min_pixels)

    def limited(self, max_pixels: int | None, min_pixels: int | None) -> VisionSpec:
        """With the user's limits: the arguments first, then MAX_PIXELS, MIN_PIXELS and VIDEO_MAX_PIXELS."""
        spec = self
        most, source = _chosen(max_pixels, "max_pixels", "MAX_PIXELS")
        least, _ = _chosen(min_pixels, "min_pixels", "MIN_PIXELS")
        if most is not None:
            spec = replace(spec, max_pixels=most, max_pixels_source=source)
            if not spec.clip_limits:
                spec = replace(spec, video_max_pixels=min(spec.video_max_pixels, most))
        if least is not None:
            spec = replace(spec, min_pixels=least)
        video_most, _ = _chosen(None, "", "VIDEO_MAX_PIXELS")
        if video_most is not None:
            spec = replace(spec, video_max_pixels=video_most)
        if spec.min_pixels > spec.max_pixels:
            if least is not None:
                raise UsageError(f"min_pixels {spec.min_pixels} is above max_pixels {spec.max_pixels}")
            spec = replace(spec, min_pixels=spec.max_pixels)
        return replace(spec, video_min_pixels=min(spec.video_min_pixels, spec.video_max_pixels))


_DEFAULTS = {
    "qwen2_vl": VisionSpec("qwen2_vl"),
    "qwen2_5_vl": VisionSpec("qwen2_5_vl"),
    "qwen3_vl": VisionSpec(
        "qwen3_vl",
        patch_size=16,
        min_pixels=256 * 256,
        max_pixels=4096 * 4096,
        image_mean=_HALF[0],
        image_std=_HALF[1],
        video_min_pixels=128 * 32 * 32,
        video_max_pixels=768 * 32 * 32,
        clip_limits=True,
    ),
}


def _settings(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Image and video processor settings, from the old separate files or transformers 5's joint one."""
    joint = _read(folder / "processor_config.json")
    image = _read(folder / "preprocessor_config.json") or joint.get("image_processor") or {}
    video = _read(folder / "video_preprocessor_config.json") or joint.get("video_processor") or {}
    return image, video


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SightlineError(f"cannot read {path}: {error}") from error
    if not isinstance(value, dict):
        raise SightlineError(f"{path} must hold a JSON object, not {type(value).__name__}")
    return value


def _read_common(settings: dict[str, Any]) -> dict[str, Any]:
    common: dict[str, Any] = {
        name: settings[name]
        for name in ("patch_size", "temporal_patch_size", "merge_size")
        if settings.get(name) is not None
    }
    for name in ("image_mean", "image_std"):
        if settings.get(name) is not None:
            common[name] = tuple(settings[name])
    return common


def _read_limits(settings: dict[str, Any], prefix: str) -> dict[str, Any]:
    size = settings.get("size") or {}
    found = {
        "min_pixels": settings.get("min_pixels", size.get("shortest_edge", size.get("min_pixels"))),
        "max_pixels": settings.get("max_pixels", size.get("longest_edge", size.get("max_pixels"))),
    }
    if prefix:
        found |= {"fps": settings.get("fps"), "min_frames": settings.get("min_frames")}
        found |= {"max_frames": settings.get("max_frames")}
    return {prefix + name: value for name, value in found.items() if value is not None}


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
