"""One row of JSON into a conversation, or a RowError that names the cause and the remedy."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.data.conversation import Conversation, Message, Origin, Part, RowError, Text
from sightline.data.entries import image_from_entry, video_from_entry
from sightline.data.media import IMAGE_SUFFIXES, local_path
from sightline.data.tags import IMAGE_TAG, NOUN, VIDEO_TAG, path_in_text, split_tags
from sightline.errors import SightlineError

ROLES = ("system", "user", "assistant", "tool")
_OURS = ("messages", "images", "image", "videos", "video", "system")


def parse_row(
    row: dict[str, Any], *, origin: Origin | None = None, folder: Path, media_root: Path | None = None
) -> Conversation:
    """The conversation in `row`. Relative media are looked for in `folder`, then in `media_root`.

    No medium is opened. Raises:
        RowError: the row is not of our form; tags and media differ in number; a path stands in the text.
    """
    try:
        return _Parser(folder, media_root).parse(row, origin)
    except RowError as error:
        raise RowError(error.cause, origin, error.kind) from None
    except SightlineError as error:
        raise RowError(str(error), origin, getattr(error, "kind", "row")) from None


@dataclass
class _Parser:
    folder: Path
    media_root: Path | None
    images: list[Any] = field(default_factory=list)
    videos: list[Any] = field(default_factory=list)

    def parse(self, row: Any, origin: Origin | None) -> Conversation:
        if not isinstance(row, dict):
            raise RowError(f"the row is {kind_of(row)}, not an object with messages")
        messages = _messages_of(row)
        images, videos = _listed(row, "image"), _listed(row, "video")
        tags = {tag: _count_tags(messages, tag) for tag in (IMAGE_TAG, VIDEO_TAG)}
        if tags[VIDEO_TAG] == 1 and len(videos) > 1 and all(_is_image_path(entry) for entry in videos):
            videos = [videos]  # the frames of the one clip
        self._check_counts(messages, tags, images, videos)
        self.images, self.videos = list(images), list(videos)
        parsed = [self._message(message, index) for index, message in enumerate(messages, 1)]
        extra = {key: value for key, value in row.items() if key not in _OURS}
        return Conversation(parsed, origin, extra)

    def _check_counts(
        self, messages: list[dict[str, Any]], tags: dict[str, int], images: list[Any], videos: list[Any]
    ) -> None:
        if not images and not videos:
            for message in messages:
                found = _text_path(message, self.folder, self.media_root, any(tags.values()))
                if found:
                    raise RowError(
                        f"the path {found} stands inside the message text; list it under images or videos "
                        "and put <image> or <video> in its place",
                        kind="path-in-text",
                    )
        listed = _listed_in_text(messages, [*images, *videos])
        if listed:
            raise RowError(
                f"the path {listed} is listed as a medium and stands inside the message text too; "
                "remove it from the text",
                kind="path-in-text",
            )
        for tag, media in ((IMAGE_TAG, images), (VIDEO_TAG, videos)):
            if tags[tag] != len(media):
                raise RowError(_count_cause(tag, tags[tag], len(media)), kind="tag-count")

    def _message(self, message: dict[str, Any], index: int) -> Message:
        content = message["content"]
        parts: list[Part] = []
        if isinstance(content, str):
            for piece in split_tags(content):
                parts.append(self._next(piece) if piece in NOUN else Text(piece))
        else:
            for part in content:
                parts.append(self._part(part, index))
        return Message(
            message["role"], [part for part in parts if not (isinstance(part, Text) and not part.text)]
        )

    def _next(self, tag: str) -> Part:
        if tag == IMAGE_TAG:
            return image_from_entry(self.images.pop(0), self._resolve)
        return video_from_entry(self.videos.pop(0), self._resolve)

    def _part(self, part: dict[str, Any], index: int) -> Part:
        kind = _part_kind(part, index)
        if kind == "text":
            return Text(_text_of(part, index))
        if not _has_source(part):
            return self._next(f"<{kind}>")
        return (image_from_entry if kind == "image" else video_from_entry)(part, self._resolve)

    def _resolve(self, source: str) -> str:
        """An absolute path (or the data: URL) for what the row names."""
        path = local_path(source)
        if path is None:
            return source
        if path.is_absolute():
            return str(path)
        here = self.folder / path
        if self.media_root is not None and not here.exists() and (self.media_root / path).exists():
            here = self.media_root / path
        return str(here.absolute())


def _messages_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    messages = row.get("messages")
    if messages is None:
        hint = "; `sightline data convert` turns other forms into it"
        raise RowError(
            f"the row has no messages, only {', '.join(map(repr, list(row)[:6])) or 'nothing'}{hint}"
        )
    if not isinstance(messages, list) or not messages:
        raise RowError("messages must be a list with at least one {role, content}")
    for index, message in enumerate(messages, 1):
        _check_message(message, index)
    system = row.get("system")
    if isinstance(system, str) and system and messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    return messages


def _check_message(message: Any, index: int) -> None:
    if not isinstance(message, dict):
        raise RowError(f"message {index} is {kind_of(message)}, not an object with role and content")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise RowError(f"message {index} has the role {role!r}; use {', '.join(ROLES)}")
    if message.get("tool_calls") or message.get("function_call"):
        raise RowError(
            f"message {index} calls a tool, which data rows cannot hold yet; write the call as text"
        )
    if isinstance(content, list):
        for part in content:
            _part_kind(part, index)
    elif not isinstance(content, str):
        raise RowError(
            f"the content of message {index} is {kind_of(content)}; write a string or a list of parts"
        )


def _part_kind(part: Any, index: int) -> str:
    """text, image or video."""
    if not isinstance(part, dict):
        raise RowError(f"message {index} has a part that is {kind_of(part)}, not an object with a type")
    kind = part.get("type")
    if kind is None:
        kind = next(
            (key for key in ("text", "image", "image_url", "video", "video_url") if key in part), None
        )
    if kind in ("text", "input_text", "output_text"):
        _text_of(part, index)
        return "text"
    if kind in ("image", "image_url", "input_image"):
        return "image"
    if kind in ("video", "video_url"):
        return "video"
    raise RowError(f"message {index} has a part of type {kind!r}; use text, image, image_url or video")


def _text_of(part: dict[str, Any], index: int) -> str:
    text = part.get("text")
    if not isinstance(text, str):
        raise RowError(f"message {index} has a text part without a text string")
    return text


def _has_source(part: dict[str, Any]) -> bool:
    return any(part.get(key) for key in ("image", "image_url", "video", "video_url", "path", "url"))


def _listed(row: dict[str, Any], noun: str) -> list[Any]:
    """The media of one kind that the row lists, under the plural or the singular key."""
    plural, single = row.get(f"{noun}s"), row.get(noun)
    if plural and single:
        raise RowError(f"the row has both {noun}s and {noun}; keep one of the two")
    value = plural or single
    if not value:
        return []
    return value if isinstance(value, list) else [value]


def _count_tags(messages: list[dict[str, Any]], tag: str) -> int:
    """Tags in strings, and parts of that kind that name no source of their own."""
    count = 0
    for index, message in enumerate(messages, 1):
        content = message["content"]
        if isinstance(content, str):
            count += content.count(tag)
        else:
            count += sum(_part_kind(part, index) == NOUN[tag] and not _has_source(part) for part in content)
    return count


def _count_cause(tag: str, tags: int, media: int) -> str:
    noun = NOUN[tag]
    if tags == 0:
        return (
            f"0 {tag} tags but {media} {_plural(media, noun)}; "
            f"put one {tag} per {noun} in the message where it belongs (`data convert --add-tags` does it)"
        )
    more = f"list one {noun} per tag under {noun}s" if tags > media else f"write one {tag} per listed {noun}"
    return f"{tags} {tag} {_plural(tags, 'tag')} but {media} {_plural(media, noun)}; {more}"


def _text_path(message: dict[str, Any], folder: Path, media_root: Path | None, tagged: bool) -> str | None:
    content = message["content"]
    if message["role"] != "user":
        return None
    if not isinstance(content, str):
        if any(_part_kind(part, 0) != "text" for part in content):
            return None
        content = "\n".join(part["text"] for part in content)
    roots = [folder] if media_root is None else [folder, media_root]
    return path_in_text(content, roots, tagged=tagged)


def _listed_in_text(messages: list[dict[str, Any]], media: list[Any]) -> str | None:
    """A listed path that a user's text repeats, folder and all."""
    paths = [
        entry for entry in media if isinstance(entry, str) and "/" in entry and not entry.startswith("data:")
    ]
    for message in messages:
        if message["role"] == "user" and isinstance(message["content"], str):
            for path in paths:
                if path in message["content"]:
                    return path
    return None


def _is_image_path(entry: Any) -> bool:
    return isinstance(entry, str) and entry.lower().endswith(IMAGE_SUFFIXES)


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"


def kind_of(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
