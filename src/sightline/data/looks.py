"""Looking at the files of media: many at once, each only once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from sightline.data.conversation import Conversation, Image, Video
from sightline.data.images import verify_image
from sightline.data.media import DEFAULT, Budget, MediaError, describe
from sightline.data.videos import verify_video
from sightline.data.vision import MAX_ASPECT_RATIO


def media_of(conversation: Conversation) -> list[Image | Video]:
    return [part for part in conversation.parts() if isinstance(part, (Image, Video))]


class Looks:
    """What was found wrong with each medium; a file is looked at once however many rows name it."""

    def __init__(self, budget: Budget, decode: bool) -> None:
        self._budget = budget
        self._decode = decode
        self._found: dict[Any, tuple[str, str] | None] = {}

    def look(self, pool: ThreadPoolExecutor, conversations: Sequence[Conversation]) -> None:
        """Look at the files of all `conversations` in parallel."""
        media = {
            key: medium
            for conversation in conversations
            for medium in media_of(conversation)
            if (key := _key(medium)) is not None and key not in self._found
        }
        fault = partial(medium_fault, budget=self._budget, decode=self._decode)
        self._found.update(zip(media, pool.map(fault, media.values()), strict=True))

    def of(self, medium: Image | Video) -> tuple[str, str] | None:
        """(kind, cause) or None."""
        key = _key(medium)
        if key is None:
            return medium_fault(medium, self._budget, self._decode)
        if key not in self._found:
            self._found[key] = medium_fault(medium, self._budget, self._decode)
        return self._found[key]


def _key(medium: Image | Video) -> Any:
    """What a medium is remembered by; long data: URLs and bytes are looked at anew."""
    source = medium.source
    if isinstance(source, tuple):
        return (
            (Video, source) if all(isinstance(frame, str) and len(frame) < 4096 for frame in source) else None
        )
    return (type(medium), source) if isinstance(source, str) and len(source) < 4096 else None


def medium_fault(
    medium: Image | Video, budget: Budget = DEFAULT, decode: bool = False
) -> tuple[str, str] | None:
    """(kind, cause) of what is wrong with a medium, or None."""
    try:
        if isinstance(medium, Image):
            width, height = verify_image(medium.source, budget, decode=decode)
        else:
            header = verify_video(medium, budget, decode=decode)
            width, height = header.width, header.height
    except MediaError as error:
        return error.kind, str(error)
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        name = describe(medium.source) if not isinstance(medium.source, tuple) else "the video"
        return "aspect-ratio", (
            f"{name} is {width}x{height} pixels, longer than {MAX_ASPECT_RATIO} to 1, "
            "which the model refuses; crop it"
        )
    return None
