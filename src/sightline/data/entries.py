"""One medium of a row: a path or URL, or an object with limits, or (videos) a list of frames."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sightline.data.conversation import Image, RowError, Source, Video
from sightline.data.media import to_data_url

Resolve = Callable[[str], str]
_LIMITS = ("max_pixels", "min_pixels")


def image_from_entry(entry: Any, resolve: Resolve) -> Image:
    """The image an entry names; `resolve` makes its path absolute.

    Raises:
        RowError: no path or URL in it, or a limit that is not a positive whole number.
    """
    source, settings = _unwrap(entry, "image")
    if isinstance(source, list):
        raise RowError("an entry of images is a list; list each image by itself")
    return Image(_resolved(source, "image", resolve), **_limits(settings, "image"))


def video_from_entry(entry: Any, resolve: Resolve) -> Video:
    """The video an entry names, a file or a list of frames; otherwise as `image_from_entry`."""
    source, settings = _unwrap(entry, "video")
    frames: Source | tuple[Source, ...]
    if isinstance(source, list):
        if not source:
            raise RowError("a video is an empty list of frames; list its pictures in order")
        frames = tuple(_resolved(frame, "frame", resolve) for frame in source)
    else:
        frames = _resolved(source, "video", resolve)
    fps = settings.get("fps")
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps < 1e6):
        raise RowError(f"the fps of a video is {fps!r}; give a number above 0")
    return Video(
        frames,
        fps=float(fps) if fps is not None else None,
        max_frames=_whole(settings, "max_frames", "video"),
        **_limits(settings, "video"),
    )


def _unwrap(entry: Any, noun: str) -> tuple[Any, dict[str, Any]]:
    """The source in `entry` and the object that holds its settings."""
    if not isinstance(entry, dict):
        return entry, {}
    for key in ("path", "url", noun, f"{noun}_url"):
        value = entry.get(key)
        if isinstance(value, dict):  # OpenAI: {"image_url": {"url": ..., "detail": ...}}
            return value.get("url"), {**value, **entry}
        if value:
            return value, entry
    raise RowError(f"an entry of {noun}s is an object without path or url; name the file in it")


def _resolved(source: Any, noun: str, resolve: Resolve) -> str:
    if not isinstance(source, str) or not source.strip() or "\x00" in source:
        raise RowError(f"an entry of {noun}s is {source!r:.80}; write the path of a file")
    return resolve(source)


def _limits(settings: dict[str, Any], noun: str) -> dict[str, int | None]:
    return {key: _whole(settings, key, noun) for key in _LIMITS}


def _whole(settings: dict[str, Any], key: str, noun: str) -> int | None:
    value = settings.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 1 or value != int(value):
        raise RowError(f"{key} of the {noun} is {value!r}; give a whole number above 0")
    return int(value)


def to_entry(medium: Image | Video) -> Any:
    """The entry of a row for `medium`: the path alone where no setting is made."""
    source = medium.source
    plain: Any = [_plain(frame) for frame in source] if isinstance(source, tuple) else _plain(source)
    settings = {key: getattr(medium, key, None) for key in ("fps", "max_frames", *_LIMITS)}
    settings = {key: value for key, value in settings.items() if value is not None}
    return {"path": plain, **settings} if settings else plain


def _plain(source: Source) -> str:
    """A path or URL as it is; bytes and open pictures as data: URLs."""
    if isinstance(source, str):
        return source
    if isinstance(source, bytes):
        return to_data_url(source)
    buffer = io.BytesIO()
    source.save(buffer, "PNG")
    return to_data_url(buffer.getvalue(), "image/png")


def relative_entry(entry: Any, folder: Path) -> Any:
    """`entry` with absolute paths under `folder` made relative to it."""
    if isinstance(entry, list):
        return [relative_entry(item, folder) for item in entry]
    if isinstance(entry, dict):
        return {
            key: relative_entry(value, folder) if key == "path" else value for key, value in entry.items()
        }
    if not isinstance(entry, str) or not Path(entry).is_absolute():
        return entry
    path = Path(entry)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else entry
