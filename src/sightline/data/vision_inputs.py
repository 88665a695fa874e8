"""`process_vision_info` as users of qwen-vl-utils know it: the media of messages, opened and resized.

Written from its documented behaviour (0.0.14). Differences: no torchvision, http(s) addresses are refused,
pictures are turned upright by Exif, and the pixel limits of this machine's `MAX_PIXELS` count.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sightline.data.conversation import Source, Video
from sightline.data.images import open_image
from sightline.data.media import DEFAULT, Budget, MediaError, describe, is_web_address
from sightline.data.videos import FPS, MAX_FRAMES, MIN_FRAMES, Frames, load_video, plan_video
from sightline.data.vision import smart_resize
from sightline.errors import UsageError

if TYPE_CHECKING:
    import PIL.Image
    import torch

Element = dict[str, Any]

_MERGE = 2  # patches along one side of a vision token
_TEMPORAL = 2
# In vision tokens, as qwen-vl-utils has them.
_IMAGE_TOKENS = (4, 16384)
_FRAME_TOKENS = (128, 768)
_CLIP_TOKENS = 128000 * 0.9


def process_vision_info(
    messages: list[Any],
    return_video_kwargs: bool = False,
    return_video_metadata: bool = False,
    image_patch_size: int = 14,
    budget: Budget = DEFAULT,
) -> tuple[Any, ...]:
    """Open the images and videos of a conversation (or of a list of conversations), in order.

    Args:
        messages: `[{"role", "content": [parts]}]`. A part is `{"type": "image", "image": SOURCE}`,
            `{"type": "image_url", "image_url": SOURCE or {"url": SOURCE}}` or `{"type": "video", "video":
            SOURCE or list of frames}`; SOURCE is a path, a file:// or data: URL, or (images) an open PIL
            picture. Beside it may stand `min_pixels`, `max_pixels`, `resized_height` with `resized_width`; for
            videos also `total_pixels`, `fps`, `nframes`, `min_frames`, `max_frames`; for frames `sample_fps`.
        image_patch_size: 14 for Qwen2-VL and Qwen2.5-VL, 16 for Qwen3-VL.

    Returns:
        `(images, videos)` or `(images, videos, kwargs)`; images and videos are None where there is none. An
        image is an RGB PIL picture whose sides are multiples of twice the patch size. A video is a float32
        tensor [frames, 3, height, width] of 0 to 255, or `(tensor, metadata)` with `return_video_metadata`.
        `kwargs` are the processor's: `do_sample_frames=False` and, without metadata, the sampled `fps` of
        each video.

    Raises:
        MediaError: a medium cannot be used. UsageError: a part or one of its settings cannot be understood.
    """
    factor = image_patch_size * _MERGE
    images: list[PIL.Image.Image] = []
    videos: list[Any] = []
    rates: list[float] = []
    for element in vision_elements(messages):
        if _is_video(element):
            tensor, metadata, rate = _video(element, factor, budget)
            videos.append((tensor, metadata) if return_video_metadata else tensor)
            rates.append(rate)
        else:
            images.append(_image(element, factor, budget))
    found = (images or None, videos or None)
    if not return_video_kwargs:
        return found
    kwargs: dict[str, Any] = {"do_sample_frames": False}
    if not return_video_metadata:
        kwargs["fps"] = rates
    return (*found, kwargs)


def vision_elements(messages: list[Any]) -> Iterator[Element]:
    """The image and video parts of a conversation or of a list of conversations."""
    if not isinstance(messages, list):
        raise UsageError(f"messages is a {type(messages).__name__}; give a list of {{role, content}}")
    conversations = messages if messages and isinstance(messages[0], list) else [messages]
    for conversation in conversations:
        for message in conversation:
            if not isinstance(message, dict):
                raise UsageError(
                    f"a message is a {type(message).__name__}; give an object with role and content"
                )
            content = message.get("content")
            for part in content if isinstance(content, list) else ():
                if isinstance(part, dict) and (_is_video(part) or _is_image(part)):
                    yield part


def _is_video(part: Element) -> bool:
    return part.get("type") == "video" or "video" in part


def _is_image(part: Element) -> bool:
    return part.get("type") in ("image", "image_url") or "image" in part or "image_url" in part


def _source(part: Element, *keys: str) -> Any:
    """What the part names. http(s) addresses are refused here for pictures, videos and frames alike."""
    for key in keys:
        value = part.get(key)
        if isinstance(value, dict):
            value = value.get("url")
        if value is not None and value != "":
            for one in value if isinstance(value, (list, tuple)) else (value,):
                if is_web_address(one):
                    raise MediaError(
                        f"{describe(one)} is a web address, which is not fetched here; "
                        "download the file first",
                        "unsupported",
                    )
            return value
    raise UsageError(
        f"a part of type {part.get('type')!r} names no {keys[0]}; put its path under {keys[0]!r}"
    )


def _image(part: Element, factor: int, budget: Budget) -> PIL.Image.Image:
    picture = open_image(_source(part, "image", "image_url"), budget)
    width, height = picture.size
    least, most = (tokens * factor**2 for tokens in _IMAGE_TOKENS)
    limit = os.environ.get("MAX_PIXELS", "")
    most = int(limit) if limit.isdigit() and int(limit) > 0 else most
    most = _number(part, "max_pixels") or most
    least = min(_number(part, "min_pixels") or least, most)
    height, width = _target(part, height, width, factor, least, most)
    return picture.resize((width, height))


def _target(part: Element, height: int, width: int, factor: int, least: int, most: int) -> tuple[int, int]:
    """(height, width): the one asked for, rounded to the factor, or the one that the limits give."""
    asked = _number(part, "resized_height"), _number(part, "resized_width")
    if asked[0] and asked[1]:
        return smart_resize(
            asked[0], asked[1], factor, _IMAGE_TOKENS[0] * factor**2, _IMAGE_TOKENS[1] * factor**2
        )
    return smart_resize(height, width, factor, least, most)


def _video(part: Element, factor: int, budget: Budget) -> tuple[torch.Tensor, dict[str, Any], float]:
    """float32 [frames, 3, height, width], what is known of the clip, and the sampled rate."""
    import numpy as np
    import torch

    source = _source(part, "video")
    given = isinstance(source, (list, tuple))
    clip, sampling = _clip(part, tuple(source) if given else source, given)
    plan = plan_video(clip, budget=budget, **sampling)
    size = _frame_size(part, plan.height, plan.width, len(plan.timestamps), factor)

    def shrink(picture: PIL.Image.Image) -> PIL.Image.Image:
        return picture.resize((size[1], size[0]))

    frames = load_video(clip, budget=budget, transform=shrink, **sampling)
    stacked = np.stack([np.asarray(picture) for picture in frames.images])
    tensor = torch.from_numpy(stacked).permute(0, 3, 1, 2).float()
    return tensor, _metadata(frames), frames.sampled_fps


def _clip(part: Element, source: Source | tuple[Source, ...], given: bool) -> tuple[Video, dict[str, Any]]:
    """The clip and the arguments of `load_video` that its settings mean."""
    if given:
        return Video(source, fps=_rate(part, "sample_fps") or FPS), {"max_frames": MAX_FRAMES}
    count = _number(part, "nframes")
    if count is not None and "fps" in part:
        raise UsageError("a video has both fps and nframes; keep one of the two")
    if count is not None:  # so many frames, whatever the length
        even = max(_TEMPORAL, round(count / _TEMPORAL) * _TEMPORAL)
        return Video(source), {"fps": 1e6, "min_frames": even, "max_frames": even}
    most = _number(part, "max_frames") or MAX_FRAMES
    least = min(_number(part, "min_frames") or MIN_FRAMES, most)
    return Video(source), {"fps": _rate(part, "fps") or FPS, "min_frames": least, "max_frames": most}


def _frame_size(part: Element, height: int, width: int, frames: int, factor: int) -> tuple[int, int]:
    """(height, width) of each frame: its own limits, and all frames together under `total_pixels`."""
    least = _number(part, "min_pixels") or _FRAME_TOKENS[0] * factor**2
    total = _number(part, "total_pixels") or int(_CLIP_TOKENS * factor**2)
    most = max(min(_FRAME_TOKENS[1] * factor**2, total / frames * _TEMPORAL), int(least * 1.05))
    most = min(_number(part, "max_pixels") or most, most)
    return _target(part, height, width, factor, min(least, int(most)), int(most))


def _metadata(frames: Frames) -> dict[str, Any]:
    return {
        "fps": frames.source_fps,
        "frames_indices": [round(time * frames.source_fps) for time in frames.timestamps],
        "total_num_frames": frames.total_frames,
        "video_backend": "pyav",
    }


def _number(part: Element, key: str) -> int | None:
    value = part.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 1:
        raise UsageError(f"{key} is {value!r}; give a whole number above 0")
    return int(value)


def _rate(part: Element, key: str) -> float | None:
    value = part.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
        raise UsageError(f"{key} is {value!r}; give a number above 0")
    return float(value)
