"""The one schema of the house: a conversation of messages, each a list of text, image and video parts.

On disk a conversation is one JSON row (see `sightline.data.rows`); in memory it is this. Nothing here opens
a file: a medium is named by its source and opened by `sightline.data.media`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Union

from sightline.errors import SightlineError

if TYPE_CHECKING:
    import PIL.Image

# A path, a file:// or data: URL, encoded bytes, or a picture that is already open.
Source = Union[str, bytes, "PIL.Image.Image"]


@dataclass(frozen=True)
class Origin:
    """Where a row came from: file name and line (jsonl) or index from 1 (json)."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Image:
    """One still picture. Pixel limits, in pixels, override the model's for this picture."""

    source: Source
    min_pixels: int | None = None
    max_pixels: int | None = None


@dataclass(frozen=True)
class Video:
    """One clip: a file, or its frames as pictures. Pixel limits are per frame; `fps` is the sampling rate."""

    source: Source | tuple[Source, ...]
    fps: float | None = None
    max_frames: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None


Part = Text | Image | Video


@dataclass
class Message:
    """One turn. `role` is system, user, assistant or tool."""

    role: str
    parts: list[Part] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text parts joined; media are left out."""
        return "".join(part.text for part in self.parts if isinstance(part, Text))


@dataclass
class Conversation:
    messages: list[Message]
    origin: Origin | None = None
    # Columns of the row that are not ours (id, category, ...): kept, and written back with results.
    extra: dict[str, Any] = field(default_factory=dict)

    def parts(self) -> Iterator[Part]:
        for message in self.messages:
            yield from message.parts

    @property
    def images(self) -> list[Image]:
        return [part for part in self.parts() if isinstance(part, Image)]

    @property
    def videos(self) -> list[Video]:
        return [part for part in self.parts() if isinstance(part, Video)]

    def without_answer(self) -> Conversation:
        """The conversation up to its last assistant turn: what a model is asked."""
        messages = list(self.messages)
        while messages and messages[-1].role == "assistant":
            messages.pop()
        return Conversation(messages, self.origin, self.extra)

    @property
    def answer(self) -> str | None:
        """The text of the last message if the assistant said it."""
        last = self.messages[-1] if self.messages else None
        return last.text if last is not None and last.role == "assistant" else None


class RowError(SightlineError):
    """A faulty row: where it stands and why. `kind` is what `data check` counts it under."""

    def __init__(self, cause: str, origin: Origin | None = None, kind: str = "row") -> None:
        super().__init__(f"{origin}: {cause}" if origin else cause)
        self.cause = cause
        self.origin = origin
        self.kind = kind
