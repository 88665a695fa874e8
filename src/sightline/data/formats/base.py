"""What a foreign format is: how to know it by its shape, and how to read it as our rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.data.conversation import Origin, RowError

Row = dict[str, Any]
# Our row or why there is none, and the place in the source.
Item = tuple[Origin, Row | RowError]


@dataclass(frozen=True)
class Options:
    """What a user may say about a conversion; a format takes what concerns it."""

    max_samples: int | None = None
    media_root: Path | None = None
    captions: str = "all"
    prompt: str = "Describe the image in one sentence."


@dataclass(frozen=True)
class RowFormat:
    """A file of rows. `matches` looks at one row; `convert` gives our row or raises RowError."""

    name: str
    matches: Callable[[Row], bool]
    convert: Callable[[Row], Row]


@dataclass(frozen=True)
class SourceFormat:
    """A source that is not a file of rows: `matches` looks at SRC as typed, `rows` reads it all.

    `rows` gives rows whose media paths are absolute.
    """

    name: str
    matches: Callable[[str], bool]
    rows: Callable[[str, Options], Iterator[Item]]


def string(row: Row, key: str, *, default: str | None = None) -> str:
    """The string under `key`. Raises RowError where it is missing (without a default) or not a string."""
    value = row.get(key, default)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise RowError(f"{key} is missing or not a string")
    return value


def media_of(row: Row) -> Row:
    """The media columns of `row` as they are; `parse_row` takes all their spellings."""
    return {key: row[key] for key in ("images", "image", "videos", "video") if row.get(key)}


def rest_of(row: Row, *taken: str) -> Row:
    """The columns that the format does not use: they are kept."""
    ours = {"messages", "images", "image", "videos", "video", *taken}
    return {key: value for key, value in row.items() if key not in ours}
