"""Tags that stand for media in a text, and paths that stand there by mistake."""

from __future__ import annotations

import re
from pathlib import Path

from sightline.data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES

IMAGE_TAG, VIDEO_TAG = "<image>", "<video>"
NOUN = {IMAGE_TAG: "image", VIDEO_TAG: "video"}
_SPLIT = re.compile(r"(<image>|<video>)")
_SUFFIX = "|".join(suffix[1:] for suffix in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
_WRAPPED = re.compile(r"<(img|image|video)>\s*([^<>\n]+?)\s*</\1>", re.IGNORECASE)
_PATH = re.compile(rf"[^\s\"'`<>()\[\]|,;]+\.(?:{_SUFFIX})\b", re.IGNORECASE)


def split_tags(text: str) -> list[str]:
    """`text` cut before and after every tag; empty pieces are left out."""
    return [piece for piece in _SPLIT.split(text) if piece]


def path_in_text(text: str, roots: list[Path], *, tagged: bool) -> str | None:
    """The picture or video path that `text` holds as if it were a medium, or None.

    A file name in a sentence is no mistake. It is taken for one if it is wrapped (`<img>a.jpg</img>`), names
    a file that exists, has a folder or stands alone on its line; or if the row has tags but no media
    (`tagged`).
    """
    wrapped = _WRAPPED.search(text)
    if wrapped:
        return wrapped.group(2)
    for match in _PATH.finditer(text):
        path = match.group()
        alone = any(line.strip() == path for line in _SPLIT.sub("\n", text).splitlines())
        if tagged or "/" in path or "\\" in path or alone or any(_exists(root / path) for root in roots):
            return path
    return None


def _exists(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
