"""From pixels to patches of the Qwen-VL families, without torchvision: sizes, grids, token counts, arrays.

A picture is resized so that both sides are multiples of `patch_size * merge_size` and its area lies within
the pixel limits, normalised, and cut into patches in the order the vision tower expects: merge windows row
by row, inside each window its `merge_size**2` patches. One vision token stands for one merge window.

Pictures equal transformers' `Qwen2VLImageProcessorPil` bit for bit. Clips follow its
`Qwen2VLVideoProcessor` and `Qwen3VLVideoProcessor`, which resize with torch's integer kernels rather than
Pillow's (about one value in a hundred differs by one) and round the normalisation differently.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from sightline.data.conversation import Image, Video
from sightline.data.vision_spec import VisionSpec
from sightline.errors import SightlineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import PIL.Image

MAX_ASPECT_RATIO = 200

# However long the clip, a frame's limit stays this far above the least pixels, as in transformers.
_LEAST_SHARE = 1.05

Grid = tuple[int, int, int]
"""Patches in time, height and width."""


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The (height, width) a picture is resized to: multiples of `factor`, area within the limits, ratio kept.

    Raises:
        SightlineError: one side is more than 200 times the other, which the models refuse.
    """
    _check_ratio(height, width, (height, width))
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    if new_height * new_width > max_pixels:
        scale = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / scale / factor) * factor)
        new_width = max(factor, math.floor(width / scale / factor) * factor)
    elif new_height * new_width < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * scale / factor) * factor
        new_width = math.ceil(width * scale / factor) * factor
    return new_height, new_width


def smart_resize_clip(
    frames: int, height: int, width: int, *, factor: int, temporal: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Qwen3-VL's form for clips: the limits bound the pixels of all frames together.

    A clip shorter than a temporal patch counts as one (its last frame is repeated); the reference refuses it.
    """
    given = height, width
    frames = max(frames, temporal)
    if 0 < min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    _check_ratio(height, width, given)
    new_height = round(height / factor) * factor
    new_width = round(width / factor) * factor
    area = round(frames / temporal) * temporal * new_height * new_width
    if area > max_pixels:
        scale = math.sqrt(frames * height * width / max_pixels)
        new_height = max(factor, math.floor(height / scale / factor) * factor)
        new_width = max(factor, math.floor(width / scale / factor) * factor)
    elif area < min_pixels:
        scale = math.sqrt(min_pixels / (frames * height * width))
        new_height = math.ceil(height * scale / factor) * factor
        new_width = math.ceil(width * scale / factor) * factor
    return new_height, new_width


def _check_ratio(height: int, width: int, given: tuple[int, int]) -> None:
    shown = f"{given[1]}x{given[0]} picture"
    if height < 1 or width < 1:
        raise SightlineError(f"a {shown} has no pixels; leave it out")
    ratio = max(height, width) / min(height, width)
    if ratio > MAX_ASPECT_RATIO:
        raise SightlineError(
            f"aspect ratio {ratio:.1f} of a {shown} is above {MAX_ASPECT_RATIO}, which the model refuses; "
            "crop or pad it"
        )


def tokens(spec: VisionSpec, grid: Grid) -> int:
    """Vision tokens that a grid of patches takes in the prompt."""
    return grid[0] * grid[1] * grid[2] // spec.merge_size**2


def image_size_for(spec: VisionSpec, width: int, height: int, image: Image | None = None) -> tuple[int, int]:
    """(height, width) in pixels that the model sees of a picture of this size; its own limits come first."""
    most = image.max_pixels if image and image.max_pixels else spec.max_pixels
    least = image.min_pixels if image and image.min_pixels else spec.min_pixels
    return smart_resize(height, width, spec.factor, min(least, most), most)


def image_grid(spec: VisionSpec, width: int, height: int, image: Image | None = None) -> Grid:
    """Grid of a picture known by its size alone."""
    new_height, new_width = image_size_for(spec, width, height, image)
    return 1, new_height // spec.patch_size, new_width // spec.patch_size


def patch_image(
    spec: VisionSpec, picture: PIL.Image.Image, image: Image | None = None
) -> tuple[np.ndarray, Grid]:
    """Patches of one RGB picture.

    Returns:
        (float32 [grid_h * grid_w, channels * temporal_patch_size * patch_size**2], grid)
    """
    from PIL import Image as Pillow

    height, width = image_size_for(spec, *picture.size, image)
    rgb = picture if picture.mode == "RGB" else picture.convert("RGB")
    pixels = np.asarray(rgb.resize((width, height), Pillow.Resampling(spec.resample)))
    patches, grid = _empty_patches(spec, 1, height, width)
    _cut(pixels, patches[0], _image_values(spec.image_mean, spec.image_std, spec.rescale_factor))
    return patches.reshape(math.prod(grid), -1), grid


def video_size_for(
    spec: VisionSpec, frames: int, width: int, height: int, video: Video | None = None
) -> tuple[int, int]:
    """(height, width) in pixels that the model sees of each of `frames` frames."""
    least, most = video_limits(spec, frames, video)
    if not spec.clip_limits:
        return smart_resize(height, width, spec.factor, least, most)
    return smart_resize_clip(
        max(frames, spec.temporal_patch_size),
        height,
        width,
        factor=spec.factor,
        temporal=spec.temporal_patch_size,
        min_pixels=least,
        max_pixels=most,
    )


def video_limits(spec: VisionSpec, frames: int, video: Video | None = None) -> tuple[int, int]:
    """(least, most) pixels of each of `frames` frames, or where `spec.clip_limits` of all together."""
    own_most = video.max_pixels if video else None
    own_least = video.min_pixels if video else None
    if not spec.clip_limits:
        most, least = own_most or spec.video_max_pixels, own_least or spec.video_min_pixels
        most = _within_total(spec, frames, most)
        return min(least, most), most
    # The checkpoint's limits count the pixels of the whole clip; a medium's own count those of a frame.
    frames = max(frames, spec.temporal_patch_size)
    most = _within_clip(spec, frames, own_most or spec.video_frame_pixels)
    least = own_least * frames if own_least else spec.video_min_pixels
    return min(least, most), most


def _within_total(spec: VisionSpec, frames: int, most: int) -> int:
    """Limit of a frame so that a clip keeps within `video_total_pixels` (Qwen2-VL, Qwen2.5-VL)."""
    if spec.video_total_pixels is None:
        return most
    share = spec.video_total_pixels * spec.temporal_patch_size // frames
    return min(most, max(share, int(spec.video_min_pixels * _LEAST_SHARE)))


def _within_clip(spec: VisionSpec, frames: int, frame_most: int | None) -> int:
    """Limit of all frames together when each may have `frame_most` pixels (Qwen3-VL)."""
    if frame_most is None:
        return spec.video_max_pixels
    share = min(frame_most, spec.video_max_pixels // frames)
    return max(share, int(spec.video_min_pixels * _LEAST_SHARE)) * frames


def video_grid(spec: VisionSpec, frames: int, width: int, height: int, video: Video | None = None) -> Grid:
    """Grid of a clip of `frames` sampled frames of this size."""
    new_height, new_width = video_size_for(spec, frames, width, height, video)
    steps = math.ceil(frames / spec.temporal_patch_size)
    return steps, new_height // spec.patch_size, new_width // spec.patch_size


def patch_video(
    spec: VisionSpec,
    frames: Sequence[PIL.Image.Image],
    video: Video | None = None,
    *,
    size: tuple[int, int] | None = None,
) -> tuple[np.ndarray, Grid]:
    """Patches of a clip's RGB frames, the last repeated to fill the last temporal patch.

    `size` is the (height, width) of `video_size_for`, if the frames went through `resize_frame` already.

    Returns:
        (float32 [grid_t * grid_h * grid_w, channels * temporal_patch_size * patch_size**2], grid)
    """
    height, width = size or video_size_for(spec, len(frames), *frames[0].size, video)
    padded = [*frames, *[frames[-1]] * (-len(frames) % spec.temporal_patch_size)]
    patches, grid = _empty_patches(spec, len(padded) // spec.temporal_patch_size, height, width)
    values = _clip_values(spec.image_mean, spec.image_std, spec.rescale_factor)
    for index, frame in enumerate(padded):
        step, place = divmod(index, spec.temporal_patch_size)
        pixels = np.asarray(resize_frame(spec, frame, height, width))
        _cut(pixels, patches[step, ..., place : place + 1, :], values)
    return patches.reshape(math.prod(grid), -1), grid


def resize_frame(spec: VisionSpec, frame: PIL.Image.Image, height: int, width: int) -> PIL.Image.Image:
    """A frame of a clip as RGB of this size, resized as torchvision does it."""
    import torch
    from PIL import Image as Pillow

    rgb = frame if frame.mode == "RGB" else frame.convert("RGB")
    if rgb.size == (width, height):
        return rgb
    tensor = torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(
        tensor, size=(height, width), mode=_TORCH_FILTERS[spec.resample], align_corners=False, antialias=True
    )
    return Pillow.fromarray(resized[0].permute(1, 2, 0).numpy())


_TORCH_FILTERS = {2: "bilinear", 3: "bicubic"}


def _empty_patches(spec: VisionSpec, steps: int, height: int, width: int) -> tuple[np.ndarray, Grid]:
    """Room for patches in the tower's order, and their grid.

    Returns:
        (float32 [steps, window rows, windows, merge, merge, 3, temporal_patch_size, patch_size**2], grid)
    """
    patch, merge = spec.patch_size, spec.merge_size
    rows, columns = height // patch, width // patch
    shape = (steps, rows // merge, columns // merge, merge, merge, 3, spec.temporal_patch_size, patch * patch)
    return np.empty(shape, np.float32), (steps, rows, columns)


def _cut(pixels: np.ndarray, out: np.ndarray, values: np.ndarray) -> None:
    """Normalise one picture and write its patches, the same to each temporal place of `out`.

    Args:
        pixels: uint8 [height, width, 3]
        out: float32 [window rows, windows, merge, merge, 3, places, patch_size**2]
        values: float32 [3, 256], each byte's normalised value by channel. Looking them up is faster than the
            arithmetic, and one row of windows at a time stays in the cache.
    """
    window_rows, windows, merge, _, channels, _, area = out.shape
    patch = math.isqrt(area)
    rows = pixels.reshape(window_rows, merge, patch, windows, merge, patch, channels)
    for row, target in zip(rows, out, strict=True):
        # -> windows, row and column in the window, channel, patch row, patch column
        ordered = row.transpose(2, 0, 3, 5, 1, 4).reshape(windows, merge, merge, channels, 1, area)
        for channel in range(channels):
            target[:, :, :, channel] = values[channel].take(ordered[:, :, :, channel])


@lru_cache(maxsize=8)
def _image_values(mean: tuple[float, ...], std: tuple[float, ...], factor: float) -> np.ndarray:
    """float32 [3, 256]: each byte normalised with the roundings of the reference's Pillow path.

    It multiplies by the factor in double precision, rounds to single, then subtracts and divides in single.
    """
    scaled = (np.arange(256, dtype=np.float64) * factor).astype(np.float32)
    return (scaled[None] - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]


@lru_cache(maxsize=8)
def _clip_values(mean: tuple[float, ...], std: tuple[float, ...], factor: float) -> np.ndarray:
    """float32 [3, 256]: each byte normalised with the roundings of the reference's torch path.

    It scales mean and standard deviation to bytes in single precision, then subtracts and divides.
    """
    bytes_per_unit = np.float32(1 / factor)
    scaled_mean = np.array(mean, np.float32) * bytes_per_unit
    scaled_std = np.array(std, np.float32) * bytes_per_unit
    return (np.arange(256, dtype=np.float32)[None] - scaled_mean[:, None]) / scaled_std[:, None]
