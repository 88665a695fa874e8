"""Rows on disk: the one JSON form of a conversation, read tolerantly and written atomically.

    {"messages": [{"role": "user", "content": "<image>What is it?"},
                  {"role": "assistant", "content": "A cat"}], "images": ["cat.jpg"]}

`<image>` and `<video>` stand where a medium belongs and take the listed media in order. `content` may instead
be a list of parts, in which text is taken literally. Other columns are kept in `Conversation.extra`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sightline.data.conversation import Conversation, Image, Message, Origin, RowError, Text, Video
from sightline.data.entries import relative_entry, to_entry
from sightline.data.row_parser import ROLES, kind_of, parse_row
from sightline.data.tags import IMAGE_TAG, NOUN, VIDEO_TAG
from sightline.errors import SightlineError
from sightline.files import replacing


def to_row(conversation: Conversation) -> dict[str, Any]:
    """The row of `conversation`; `parse_row` reads it back to an equal conversation.

    Bytes and open pictures become data: URLs. Text that holds a literal tag is written as parts.
    """
    images = [to_entry(image) for image in conversation.images]
    videos = [to_entry(video) for video in conversation.videos]
    row: dict[str, Any] = {"messages": [_message_row(message) for message in conversation.messages]}
    if images:
        row["images"] = images
    if videos:
        row["videos"] = videos
    return {**row, **conversation.extra}


def _message_row(message: Message) -> dict[str, Any]:
    literal = any(tag in part.text for part in message.parts if isinstance(part, Text) for tag in NOUN)
    # Tags of neighbouring texts could join into one ("<ima" + "ge>").
    pairs = zip(message.parts, message.parts[1:], strict=False)
    literal = literal or any(isinstance(a, Text) and isinstance(b, Text) for a, b in pairs)
    if not literal:
        pieces = [part.text if isinstance(part, Text) else _tag_of(part) for part in message.parts]
        return {"role": message.role, "content": "".join(pieces)}
    parts = [
        {"type": "text", "text": part.text} if isinstance(part, Text) else {"type": NOUN[_tag_of(part)]}
        for part in message.parts
    ]
    return {"role": message.role, "content": parts}


def _tag_of(part: Image | Video) -> str:
    return IMAGE_TAG if isinstance(part, Image) else VIDEO_TAG


def read_rows(path: str | Path, *, max_samples: int | None = None) -> Iterator[tuple[Origin, Any]]:
    """Every row of a jsonl or json file with its place; a row that cannot be read comes as a RowError.

    A byte order mark, CRLF and blank lines are fine. A json file holds a list of rows, or one row.

    Raises:
        SightlineError: the file is missing, cannot be read, or is not JSON as a whole.
    """
    path = Path(path)
    rows = _json_rows(path) if _is_json_document(path) else _jsonl_rows(path)
    for count, item in enumerate(rows):
        if max_samples is not None and count >= max_samples:
            return
        yield item


def row_count(path: str | Path, *, max_samples: int | None = None) -> int | None:
    """About how many rows a jsonl file has, for a progress bar: its lines. None for a json list.

    Raises:
        SightlineError: the file cannot be read.
    """
    path = Path(path)
    if _is_json_document(path):
        return None
    with _open(path) as file:
        lines = sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))
    return lines if max_samples is None else min(lines, max_samples)


def _is_json_document(path: Path) -> bool:
    """A list is one document whatever the suffix; an object is one only if the suffix says so."""
    with _open(path) as file:
        first = next((line.strip() for line in file if line.strip()), b"")
    first = first.removeprefix(b"\xef\xbb\xbf").lstrip()
    return first.startswith(b"[") or (path.suffix.lower() == ".json" and not _is_row_line(first))


def _is_row_line(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _open(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        cause = (error.strerror or str(error)).lower()
        raise SightlineError(f"cannot read {path}: {cause}; give a jsonl or json file") from error


def _jsonl_rows(path: Path) -> Iterator[tuple[Origin, Any]]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                origin = Origin(str(path), number)
                yield origin, _load(line, origin)


def _load(line: bytes, origin: Origin) -> Any:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return RowError(f"not UTF-8 at byte {error.start + 1} of the line; save the file as UTF-8", origin)
    except (ValueError, RecursionError) as error:
        return RowError(f"not valid JSON{_json_fault(error)}", origin)
    if not isinstance(value, dict):
        return RowError(f"the row is {kind_of(value)}, not an object", origin)
    return value


def _json_rows(path: Path) -> Iterator[tuple[Origin, Any]]:
    document = load_json(path)
    for number, value in enumerate(document if isinstance(document, list) else [document], 1):
        origin = Origin(str(path), number)
        if isinstance(value, dict):
            yield origin, value
        else:
            yield origin, RowError(f"the row is {kind_of(value)}, not an object", origin)


def load_json(path: Path) -> Any:
    """The whole of a JSON file. Raises SightlineError where it is missing or not JSON."""
    with _open(path) as file:
        data = file.read()
    try:
        return json.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise SightlineError(f"{path} is not JSON in UTF-8; save it as UTF-8") from error
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise SightlineError(f"{path}{line}: not valid JSON{_json_fault(error)}") from error


def _json_fault(error: ValueError | RecursionError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f" at character {error.colno}: {error.msg.lower()}"
    # Beside syntax, json refuses whole numbers of over 4,300 digits.
    return ": nested too deeply" if isinstance(error, RecursionError) else ": a number has too many digits"


def load_conversations(
    path: str | Path,
    *,
    media_root: str | Path | None = None,
    max_samples: int | None = None,
    on_bad: str = "raise",
) -> list[Conversation]:
    """All conversations of a file. A bad row raises its RowError, or is left out with `on_bad="skip"`."""
    path = Path(path)
    root = Path(media_root) if media_root is not None else None
    conversations = []
    for origin, row in read_rows(path, max_samples=max_samples):
        try:
            if isinstance(row, RowError):
                raise row
            conversations.append(parse_row(row, origin=origin, folder=path.parent, media_root=root))
        except RowError:
            if on_bad != "skip":
                raise
    return conversations


def write_rows(path: str | Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write `rows` as jsonl, atomically, and return how many.

    Absolute media paths under the output's folder become relative to it, so that the folder can be moved.
    """
    path = Path(path)
    folder = path.absolute().parent
    count = 0
    with replacing(path) as file:
        for row in rows:
            file.write(_line(_relative_row(row, folder)))
            count += 1
    return count


def _line(row: dict[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False)
    # Half of a surrogate pair is valid JSON as an escape, but not UTF-8.
    return (text if _is_utf8(text) else json.dumps(row)) + "\n"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _relative_row(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    moved = dict(row)
    for key in ("images", "videos"):
        if key in row:
            moved[key] = [relative_entry(entry, folder) for entry in row[key]]
    return moved


__all__ = [
    "ROLES",
    "load_conversations",
    "load_json",
    "parse_row",
    "read_rows",
    "row_count",
    "to_row",
    "write_rows",
]
