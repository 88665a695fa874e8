"""What callers hand to the engine, in vLLM's and OpenAI's forms, as prompts and conversations of ours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from sightline.data.conversation import Conversation, Image, Message, Part, Text, Video
from sightline.errors import UsageError


@dataclass(frozen=True)
class Prompt:
    """What one request asks.

    Attributes:
        text, ids: a prompt that the chat template was applied to; neither if `media` is a whole conversation.
        media: images and videos, in the order of their placeholders.
    """

    media: Conversation
    text: str | None = None
    ids: tuple[int, ...] | None = None


def read_prompt(prompt: Any) -> Prompt:
    """A text, token ids, {"prompt" or "prompt_token_ids", "multi_modal_data", "mm_processor_kwargs"}, a
    conversation, or a Prompt.

    Raises:
        UsageError: it is none of these.
    """
    if isinstance(prompt, Prompt):
        return prompt
    if isinstance(prompt, Conversation):
        return Prompt(prompt)
    if prompt == "":
        raise UsageError("the prompt is empty")
    if isinstance(prompt, str):
        return Prompt(Conversation([]), text=prompt)
    if _is_ids(prompt):
        return Prompt(Conversation([]), ids=tuple(int(token) for token in prompt))
    if not isinstance(prompt, Mapping):
        raise UsageError(
            f"a prompt is a text, token ids or a dict with a prompt, not {type(prompt).__name__}"
        )
    given = {name: prompt.get(name) or {} for name in ("multi_modal_data", "mm_processor_kwargs")}
    for name, value in given.items():
        if not isinstance(value, Mapping):
            raise UsageError(f"{name} of a prompt must be a dict, not {type(value).__name__}")
    parts = _media(given["multi_modal_data"], given["mm_processor_kwargs"])
    media = Conversation([Message("user", parts)])
    if isinstance(prompt.get("prompt"), str):
        return replace(read_prompt(prompt["prompt"]), media=media)
    if _is_ids(prompt.get("prompt_token_ids")):
        return replace(read_prompt(prompt["prompt_token_ids"]), media=media)
    raise UsageError('a prompt given as a dict needs "prompt" (text) or "prompt_token_ids" (a list of ids)')


def check_text(prompt: Prompt) -> None:
    """Raises UsageError where a text is not Unicode: JSON may hold half of a surrogate pair."""
    texts = [part.text for part in prompt.media.parts() if isinstance(part, Text)]
    for text in [*texts, prompt.text or ""]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"character {error.start + 1} of a text is half of a surrogate pair") from error


def read_messages(messages: Any) -> Conversation:
    """OpenAI's messages as a conversation. Content is a text or a list of parts: text, image_url, image,
    video_url, video; pictures may also be PIL images, and videos lists of them.

    Raises:
        UsageError: not messages, or a part of an unknown kind; the text says which.
    """
    if isinstance(messages, Conversation):
        return messages
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise UsageError("messages must be a list with at least one message")
    return Conversation([_message(message, index) for index, message in enumerate(messages)])


def _message(message: Any, index: int) -> Message:
    where = f"messages[{index}]"
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UsageError(f"{where} must be an object with a role and a content")
    content = message.get("content")
    if isinstance(content, str):
        return Message(message["role"], [Text(content)])
    if not isinstance(content, Sequence):
        raise UsageError(f"{where}.content must be a text or a list of parts")
    return Message(message["role"], [_part(part, f"{where}.content[{i}]") for i, part in enumerate(content)])


def _part(part: Any, where: str) -> Part:
    if isinstance(part, str):
        return Text(part)
    if not isinstance(part, Mapping):
        raise UsageError(f"{where} must be an object with a type")
    kind = part.get("type") or next((key for key in ("text", "image", "video") if key in part), None)
    value = part.get(kind) if isinstance(kind, str) else None
    if kind == "text" and isinstance(value, str):
        return Text(value)
    if kind in ("image", "image_url", "image_pil"):
        return _image(_address(value, where), part, where)
    if kind in ("video", "video_url"):
        return _video(_address(value, where), part, where)
    raise UsageError(f"{where} has the type {kind!r}; known are text, image_url, image, video_url and video")


def _address(value: Any, where: str) -> Any:
    """What stands under image_url or video_url: the address itself or {"url": address}."""
    if isinstance(value, Mapping):
        value = value.get("url")
    if value is None:
        raise UsageError(f"{where} names no image or video")
    return value


def _media(data: Mapping[str, Any], options: Mapping[str, Any]) -> list[Part]:
    unknown = set(data) - {"image", "video"}
    if unknown:
        raise UsageError(f"multi_modal_data has {sorted(unknown)[0]!r}; known are image and video")
    images, videos = data.get("image"), data.get("video")
    images = [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
    rates = options.get("fps")
    where = "mm_processor_kwargs"
    parts: list[Part] = [_image(image, options, where) for image in images]
    for index, video in enumerate(_clips(videos)):
        rate = rates[index] if isinstance(rates, (list, tuple)) and index < len(rates) else rates
        rate = rate if isinstance(rate, (int, float)) else None
        parts.append(_video(video, {**options, "fps": rate}, where))
    return parts


def _clips(videos: Any) -> list[Any]:
    """One video is a path, an array of frames, (frames, metadata) or a list of pictures; several: a list."""
    if videos is None:
        return []
    if not isinstance(videos, list):
        return [videos]
    return [videos] if videos and _is_picture(videos[0]) else videos


def _image(source: Any, options: Mapping[str, Any], where: str) -> Image:
    if not isinstance(source, (str, bytes)) and not _is_picture(source):
        source = _pictures(source, 3)[0]
    return Image(source, **_numbers(options, where, "min_pixels", "max_pixels"))


def _video(source: Any, options: Mapping[str, Any], where: str) -> Video:
    """`fps` and `max_frames` say how a file is sampled; `num_frames` takes so many, whatever its length."""
    rate = _rate(options.get("fps"), where)
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[1], Mapping):
        source, metadata = source
        rate = rate or _sampled_rate(metadata)
    if isinstance(source, (list, tuple)):
        source = tuple(source)
    elif not isinstance(source, (str, bytes)):
        source = tuple(_pictures(source, 4))
    numbers = _numbers(options, where, "min_pixels", "max_pixels", "max_frames", "num_frames")
    frames = numbers.pop("num_frames")
    if frames is not None:
        if rate is not None and not isinstance(source, tuple):
            raise UsageError(f"{where} has both fps and num_frames for a video; keep one of the two")
        numbers["max_frames"] = frames
        # As many as there are, up to the most. The rate of frames that are given says when they were taken.
        rate = rate if isinstance(source, tuple) else math.inf
    return Video(source, fps=rate, **numbers)


def _numbers(options: Mapping[str, Any], where: str, *names: str) -> dict[str, int | None]:
    """Whole numbers from 1 under these names, None where there is none."""
    found = {name: options.get(name) for name in names}
    for name, value in found.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
            raise UsageError(f"{name} in {where} must be a whole number from 1, not {value!r}")
    return {name: None if value is None else int(value) for name, value in found.items()}


def _rate(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise UsageError(f"fps in {where} must be a positive number, not {value!r}")
    return float(value)


def _sampled_rate(metadata: Mapping[str, Any]) -> float | None:
    """Frames a second of the frames given, from the file's rate and the numbers of those that were taken."""
    rate, taken = metadata.get("fps"), metadata.get("frames_indices")
    if rate and taken is not None and len(taken) > 1 and taken[-1] > taken[0]:
        return float(rate * (len(taken) - 1) / (taken[-1] - taken[0]))
    return rate


def _pictures(array: Any, dimensions: int) -> list[Any]:
    """A numpy or torch array of one picture (3) or of frames (4), channels first or last, as PIL pictures."""
    import numpy as np
    from PIL import Image as Pillow

    try:
        pixels = np.asarray(array)
    except Exception as error:
        raise UsageError(f"an image cannot be made from {type(array).__name__}") from error
    if pixels.ndim != dimensions or 3 not in (pixels.shape[-1], pixels.shape[-3]) or pixels.dtype == object:
        raise UsageError(
            f"an {'image' if dimensions == 3 else 'array of frames'} of shape {pixels.shape} and type "
            f"{type(array).__name__} is not understood; give PIL images, or an array with 3 channels"
        )
    pixels = pixels[None] if dimensions == 3 else pixels
    if pixels.shape[-1] != 3:
        pixels = np.moveaxis(pixels, 1, -1)
    if pixels.dtype != np.uint8:
        pixels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    return [Pillow.fromarray(np.ascontiguousarray(frame)) for frame in pixels]


def _is_picture(value: Any) -> bool:
    import PIL.Image

    return isinstance(value, PIL.Image.Image)


def _is_ids(value: Any) -> bool:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence) or not value:
        return False
    return all(isinstance(token, int) and not isinstance(token, bool) for token in value)
