"""Every foreign format by name, which one a source is, and the conversion to a jsonl of our rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.data.conversation import Conversation, RowError
from sightline.data.formats.alpaca import ALPACA
from sightline.data.formats.base import Item, Options, Row, RowFormat, SourceFormat
from sightline.data.formats.coco import COCO
from sightline.data.formats.easy_vqa import EASY_VQA
from sightline.data.formats.llava import LLAVA
from sightline.data.formats.messages import OPENAI, SHAREGPT
from sightline.data.looks import media_of
from sightline.data.media import local_path
from sightline.data.rows import parse_row, read_rows, to_row, write_rows
from sightline.data.tags import IMAGE_TAG, VIDEO_TAG
from sightline.errors import SightlineError, UsageError
from sightline.progress import track

_SOURCES = (EASY_VQA, COCO)
_ROWS = (LLAVA, OPENAI, SHAREGPT, ALPACA)
FORMATS: dict[str, RowFormat | SourceFormat] = {format.name: format for format in (*_ROWS, *_SOURCES)}
_ALIASES = {"qwen": "llava", "swift": "sharegpt", "messages": "sharegpt", "easy_vqa": "easy-vqa"}
_LOOK_AT = 20  # rows read to find the format out


@dataclass
class ConvertReport:
    """Rows written, rows that could not be (with place and cause), written rows with `missing` media."""

    format: str
    output: Path
    written: int = 0
    bad: list[RowError] = field(default_factory=list)
    missing: int = 0
    first_missing: str | None = None


def format_named(name: str) -> RowFormat | SourceFormat:
    """Raises UsageError, with the names there are, for an unknown one."""
    format = FORMATS.get(_ALIASES.get(name.lower(), name.lower()))
    if format is None:
        raise UsageError(f"there is no format {name!r}; use one of {', '.join(FORMATS)}")
    return format


def detect(source: str | Path) -> RowFormat | SourceFormat:
    """The format of a source by the shape of its first readable rows.

    Raises:
        SightlineError: missing, empty, or of no form that is known.
    """
    for candidate in _SOURCES:
        if candidate.matches(str(source)):
            return candidate
    if Path(source).is_dir():
        raise SightlineError(f"{source} is a folder; give the jsonl or json file of its rows")
    columns: list[str] = []
    for _, row in read_rows(source, max_samples=_LOOK_AT):
        if isinstance(row, RowError):
            continue
        found = _match(row)
        if found is not None:
            return found
        columns = columns or [str(key) for key in row]
    if not columns:
        raise SightlineError(f"{source} holds no row that can be read; give a jsonl or json file of rows")
    raise SightlineError(
        f"{source} has rows of no known form (columns {', '.join(columns[:8])}); "
        f"name it with --from, one of {', '.join(FORMATS)}"
    )


def _match(row: Row) -> RowFormat | None:
    return next((format for format in _ROWS if format.matches(row)), None)


def convert(
    source: str | Path,
    output: str | Path,
    *,
    format: str | None = None,
    options: Options | None = None,
    add_tags: bool = False,
) -> ConvertReport:
    """Convert `source` and write `output` (jsonl, atomically). Bad rows are left out and reported;
    without one good row nothing is written.

    Rows whose media do not exist are written and counted as `missing`: `data check` reports each. With
    `add_tags`, a row that lists media and has no tag gets its tags at the start of the first user message.
    Rows of a file are each recognised by their own shape unless `format` is given.

    Raises:
        SightlineError: the source cannot be read or is of no known form, or the output cannot be written.
    """
    if Path(source).exists() and Path(output).exists() and Path(source).samefile(output):
        raise UsageError(f"{output} is the source itself; choose another output")
    options = options or Options()
    chosen = format_named(format) if format else detect(source)
    report = ConvertReport(chosen.name, Path(output))
    items = _items(str(source), chosen, options, fixed=format is not None)
    rows = _good_rows(items, Path(source).absolute().parent, options, add_tags, report)
    with suppress(_NothingGood):
        report.written = write_rows(output, track(rows, "converting rows"))
    return report


class _NothingGood(Exception):
    """Ends the writing so that an earlier output is not replaced by an empty file."""


def _items(source: str, format: RowFormat | SourceFormat, options: Options, *, fixed: bool) -> Iterator[Item]:
    if isinstance(format, SourceFormat):
        for count, item in enumerate(format.rows(source, options)):
            if options.max_samples is not None and count >= options.max_samples:
                return
            yield item
        return
    for origin, row in read_rows(source, max_samples=options.max_samples):
        yield origin, row if isinstance(row, RowError) else _converted(row, format, fixed)


def _converted(row: Row, format: RowFormat, fixed: bool) -> Row | RowError:
    own = format if fixed else _match(row) or format
    try:
        return own.convert(row)
    except RowError as error:
        return error


def _good_rows(
    items: Iterator[Item], folder: Path, options: Options, add_tags: bool, report: ConvertReport
) -> Iterator[dict[str, Any]]:
    any_good = False
    for origin, row in items:
        try:
            if isinstance(row, RowError):
                raise RowError(row.cause, origin, row.kind)
            row = _with_tags(row) if add_tags else row
            conversation = parse_row(row, origin=origin, folder=folder, media_root=options.media_root)
        except RowError as error:
            report.bad.append(error)
            continue
        any_good = True
        _note_missing(conversation, report)
        yield to_row(conversation)
    if not any_good:
        raise _NothingGood


def _note_missing(conversation: Conversation, report: ConvertReport) -> None:
    for medium in media_of(conversation):
        for source in medium.source if isinstance(medium.source, tuple) else (medium.source,):
            path = local_path(source)
            if path is not None and not path.exists():
                report.missing += 1
                report.first_missing = report.first_missing or str(path)
                return


def _with_tags(row: Row) -> Row:
    """Tags at the start of the first user message, where the row lists media and no message has a tag."""
    messages = row.get("messages")
    if not isinstance(messages, list) or not all(isinstance(item, dict) for item in messages):
        return row
    tags = ""
    for noun, tag in (("image", IMAGE_TAG), ("video", VIDEO_TAG)):
        media = row.get(f"{noun}s") or row.get(noun) or []
        if not any(tag in str(message.get("content")) for message in messages):
            tags += tag * (len(media) if isinstance(media, list) else 1)
    first = next((index for index, item in enumerate(messages) if item.get("role") == "user"), None)
    if not tags or first is None or not isinstance(messages[first].get("content"), str):
        return row
    tagged = {**messages[first], "content": tags + messages[first]["content"]}
    return {**row, "messages": [*messages[:first], tagged, *messages[first + 1 :]]}


__all__ = ["FORMATS", "ConvertReport", "Options", "convert", "detect", "format_named"]
