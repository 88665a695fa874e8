"""From pixels to patches: sizes, grids, token counts and patch arrays of the Qwen-VL families, without torchvision.

A picture is resized so that both sides are multiples of `patch_size * merge_size` and its area lies within the
pixel limits, normalised, and cut into patches in the order the vision tower expects: merge windows row by row,
inside each window its `merge_size**2` patches. One vision token stands for one merge window. Images equal
transformers' `Qwen2VLImageProcessorPil` bit for bit.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from sightline.data.conversation import Image, Video
from sightline.data.vision_spec import VisionSpec
from sightline.errors import SightlineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import PIL.Image

MAX_ASPECT_RATIO = 200

Grid = tuple[int, int, int]
"""Patches in time, height and width."""


def smart_resize(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The (height, width) a picture is resized to: multiples of `factor`, area within the limits, ratio kept.

    Raises:
        SightlineError: one side is more than 200 times the other, which the models refuse.
    """
    _check_ratio(height, width)
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
    """Qwen3-VL's form for clips: the limits bound the pixels of all frames together."""
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    _check_ratio(height, width)
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


def _check_ratio(height: int, width: int) -> None:
    ratio = max(height, width) / max(1, min(height, width))
    if ratio > MAX_ASPECT_RATIO:
        raise SightlineError(
            f"aspect ratio {ratio:.0f} of a {width}x{height} picture is above {MAX_ASPECT_RATIO}, "
            "which the model refuses; crop or pad it"
        )


def tokens(spec: VisionSpec, grid: Grid) -> int:
    """Vision tokens that a grid of patches takes in the prompt."""
    return grid[0] * grid[1] * grid[2] // spec.merge_size**2


def image_size_for(spec: VisionSpec, width: int, height: int, image: Image | None = None) -> tuple[int, int]:
    """(height, width) in pixels that the model sees of a picture of this size, with the picture's own limits."""
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
    import numpy as np

    pixels = _resized(picture, *image_size_for(spec, *picture.size, image))[None]
    repeated = np.broadcast_to(pixels, (spec.temporal_patch_size, *pixels.shape[1:]))
    return _patches(spec, repeated)


def video_size_for(
    spec: VisionSpec, frames: int, width: int, height: int, video: Video | None = None
) -> tuple[int, int]:
    """(height, width) in pixels that the model sees of each of `frames` frames."""
    limit = video.max_pixels if video else None
    floor = video.min_pixels if video else None
    if spec.clip_limits:
        # The checkpoint's limits count the pixels of the whole clip; a medium's own count those of a frame.
        most = min(limit * frames, spec.video_max_pixels) if limit else spec.video_max_pixels
        least = min(floor * frames if floor else spec.video_min_pixels, most)
        return smart_resize_clip(
            frames,
            height,
            width,
            factor=spec.factor,
            temporal=spec.temporal_patch_size,
            min_pixels=least,
            max_pixels=most,
        )
    most = limit or spec.video_max_pixels
    return smart_resize(height, width, spec.factor, min(floor or spec.video_min_pixels, most), most)


def video_grid(spec: VisionSpec, frames: int, width: int, height: int, video: Video | None = None) -> Grid:
    """Grid of a clip of `frames` sampled frames of this size."""
    new_height, new_width = video_size_for(spec, frames, width, height, video)
    steps = math.ceil(frames / spec.temporal_patch_size)
    return steps, new_height // spec.patch_size, new_width // spec.patch_size


def patch_video(
    spec: VisionSpec, frames: Sequence[PIL.Image.Image], video: Video | None = None
) -> tuple[np.ndarray, Grid]:
    """Patches of a clip's RGB frames, the last repeated to fill the last temporal patch.

    Returns:
        (float32 [grid_t * grid_h * grid_w, channels * temporal_patch_size * patch_size**2], grid)
    """
    import numpy as np

    size = video_size_for(spec, len(frames), *frames[0].size, video)
    pixels = [_resized(frame, *size) for frame in frames]
    pixels += [pixels[-1]] * (-len(pixels) % spec.temporal_patch_size)
    return _patches(spec, np.stack(pixels))


def _resized(picture: PIL.Image.Image, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]"""
    import numpy as np
    from PIL import Image as Pillow

    # Resized even when the size is right already: the reference does so too, and Pillow then returns a copy.
    resized = picture.convert("RGB").resize((width, height), Pillow.Resampling.BICUBIC)
    return np.asarray(resized)


def _patches(spec: VisionSpec, pixels: np.ndarray) -> tuple[np.ndarray, Grid]:
    """Normalise and cut uint8 [frames, height, width, 3]; frames is a multiple of temporal_patch_size."""
    frames, height, width, channels = pixels.shape
    time, patch, merge = spec.temporal_patch_size, spec.patch_size, spec.merge_size
    grid = frames // time, height // patch, width // patch
    windows = pixels.reshape(
        grid[0], time, grid[1] // merge, merge, patch, grid[2] // merge, merge, patch, channels
    )
    # -> time step, window row, window column, row and column in the window, channel, time, patch row, column
    ordered = windows.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, channels, time * patch * patch)
    table = _normal_values(spec.image_mean, spec.image_std)
    flat = table[_channel_index(channels)[None, :, None], ordered]
    return flat.reshape(len(ordered), -1), grid


@lru_cache(maxsize=8)
def _normal_values(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """float32 [channels, 256]: each byte's normalised value, by the reference's own roundings.

    The reference multiplies by 1/255 in double precision, rounds to single, then subtracts and divides in single.
    """
    import numpy as np

    scaled = (np.arange(256, dtype=np.float64) * (1 / 255)).astype(np.float32)
    return (scaled[None] - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]


@lru_cache(maxsize=2)
def _channel_index(channels: int) -> np.ndarray:
    import numpy as np

    return np.arange(channels)
