"""What is asked: a conversation and how long its answer may be, and the body that a server gets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sightline.data.conversation import Conversation, Image, Message, Part, Text, Video
from sightline.data.media import Named, is_web_address, to_data_url
from sightline.errors import SightlineError

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


@dataclass(frozen=True)
class Prompt:
    """One request, for any server or engine."""

    conversation: Conversation
    output_tokens: int

    @property
    def words(self) -> int:
        return sum(len(message.text.split()) for message in self.conversation.messages)

    def fields(self, endpoint: str) -> dict[str, Any]:
        """The prompt's own fields of a body for `endpoint`.

        Raises:
            SightlineError: it has pictures, and completions take none; or media that cannot be read or sent.
        """
        if endpoint.endswith("/chat/completions"):
            return {"messages": [_message(message) for message in self.conversation.messages]}
        if self.conversation.images or self.conversation.videos:
            raise SightlineError(f"{endpoint} takes no pictures; use --endpoint {CHAT}")
        return {"prompt": "\n".join(message.text for message in self.conversation.messages)}

    def body(self, endpoint: str, fields: Mapping[str, Any], limit_field: str = "max_tokens") -> bytes:
        """The whole body; `fields` go over the prompt's own. Raises as `fields`."""
        own = {**self.fields(endpoint), limit_field: self.output_tokens, "stream": True}
        return json.dumps({**own, **fields}, ensure_ascii=False).encode("utf-8", "replace")


def question(text: str, pictures: list[bytes], output_tokens: int) -> Prompt:
    """A user's message: the pictures, then the text."""
    parts: list[Part] = [Image(picture) for picture in pictures]
    return Prompt(Conversation([Message("user", [*parts, Text(text)])]), output_tokens)


def _message(message: Message) -> dict[str, Any]:
    if all(isinstance(part, Text) for part in message.parts):
        return {"role": message.role, "content": message.text}
    return {"role": message.role, "content": [_part(part) for part in message.parts]}


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Image):
        return {"type": "image_url", "image_url": {"url": _url(part.source)}}
    return {"type": "video_url", "video_url": {"url": _video_url(part)}}


def _video_url(video: Video) -> str:
    if isinstance(video.source, tuple):
        raise SightlineError("a video given as a list of frames cannot be sent over HTTP; give its file")
    return _url(video.source)


def _url(source: Any) -> str:
    """A data: URL of what `source` holds; a web address stays one, for the server to fetch."""
    if is_web_address(source):
        return str(source)
    if isinstance(source, bytes):
        return to_data_url(source)
    if isinstance(source, str) and source[:5].lower() == "data:":
        return source
    return to_data_url(Named.read(str(source)))
