"""A file of prompts: a text with one a line, or jsonl with settings of their own."""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.errors import SightlineError, UsageError
from sightline.video.size import parse_size

# What a row may say, and the field of `Request` that it is; the original command's names too.
_FIELDS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "seed": "seed",
    "base_seed": "seed",
    "width": "width",
    "height": "height",
    "frames": "frames",
    "frame_num": "frames",
    "steps": "steps",
    "sample_steps": "steps",
    "guidance": "guidance",
    "guide_scale": "guidance",
    "sample_guide_scale": "guidance",
    "shift": "shift",
    "sample_shift": "shift",
    "scheduler": "scheduler",
    "sample_solver": "scheduler",
    "fps": "fps",
}
_LONGEST_SLUG = 48  # characters
_LONGEST_NAME = 200  # bytes; file systems take 255, and a copy's number and a suffix come behind it


@dataclass(frozen=True)
class Row:
    """One prompt of a file.

    Attributes:
        line: where it stands, from 1.
        number: of the prompt, from 1; lines without one do not count.
        prompt: the text.
        settings: fields of `Request` that it sets for itself.
        name: of its file, without suffix; made of number and prompt where the row has none.
    """

    line: int
    number: int
    prompt: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""


@dataclass(frozen=True)
class BadRow:
    """A line that cannot be used, and why."""

    line: int
    reason: str


def read_prompts(path: Path) -> tuple[list[Row], list[BadRow]]:
    """All rows of a file: jsonl by its suffix, else a prompt a line, where blank lines and `# ...` are none.

    Raises:
        SightlineError: the file cannot be read, is a whole JSON, or has no prompt.
    """
    if path.suffix.lower() == ".json":
        raise SightlineError(f"{path} is JSON; write an object a line and name it {path.stem}.jsonl")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SightlineError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SightlineError(f"{path} is not UTF-8 text: {error}; save it as UTF-8") from error
    rows: list[Row] = []
    bad: list[BadRow] = []
    structured = path.suffix.lower() in (".jsonl", ".ndjson")
    for number, (line, words) in enumerate(_lines(text, comments=not structured), 1):
        try:
            rows.append(_row(line, number, json.loads(words) if structured else {"prompt": words}))
        except UsageError as error:
            bad.append(BadRow(line, str(error)))
        except (ValueError, RecursionError) as error:
            bad.append(BadRow(line, f"not JSON: {error}"))
    if not rows and not bad:
        raise SightlineError(f"{path} has no prompt; write one a line")
    return rows, bad


def slug(prompt: str) -> str:
    """A prompt as part of a file's name: letters and digits of any script, hyphens between; `video` without any."""
    words = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFKC", prompt).lower()).strip("-")
    # A file system counts bytes; letters of other scripts have up to four, and their cuts must not split one.
    short = words[:_LONGEST_SLUG].encode()[: 2 * _LONGEST_SLUG].decode(errors="ignore")
    return short.strip("-") or "video"


def check_text(text: str, what: str) -> None:
    """Refuse what no file can hold.

    Raises:
        UsageError: a half of a character, as a wrong encoding leaves it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{what} is not UTF-8 text at character {error.start}; save or type it as UTF-8"
        ) from error


def _lines(text: str, comments: bool) -> Iterator[tuple[int, str]]:
    for line, words in enumerate(text.split("\n"), 1):
        words = words.strip()
        if words and not (comments and words.startswith("#")):
            yield line, words


def _row(line: int, number: int, given: Any) -> Row:
    if not isinstance(given, dict):
        raise UsageError(f"a row must be an object with a prompt, not {json.dumps(given)[:40]}")
    settings: dict[str, Any] = {}
    for key, value in given.items():
        if key == "size":
            said = dict(zip(("width", "height"), parse_size(value), strict=True))
        elif key in _FIELDS:
            said = {_FIELDS[key]: value}
        elif key == "name":
            said = {}
        else:
            near = difflib.get_close_matches(key, [*_FIELDS, "size", "name"], 1)
            raise UsageError(f"unknown field {key!r}" + (f"; did you mean {near[0]}?" if near else ""))
        if twice := sorted(set(said) & set(settings)):
            raise UsageError(f"{key} says {twice[0]} a second time; leave one out")
        settings |= said
    prompt = settings.pop("prompt", None)
    if not isinstance(prompt, str) or not prompt.strip():
        raise UsageError(f"prompt must be a text, not {prompt!r}")
    for what, text in (("prompt", prompt), ("negative_prompt", settings.get("negative_prompt"))):
        if isinstance(text, str):
            check_text(text, what)
    for key in ("guidance", "shift"):  # JSON writes 5.0 as 5
        if type(settings.get(key)) is int:
            settings[key] = float(settings[key])
    return Row(line, number, prompt, settings, _name(given.get("name"), number, prompt))


def _name(name: Any, number: int, prompt: str) -> str:
    if name is None:
        return f"{number:04d}-{slug(prompt)}"
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w .+=@-]*", name) or name != name.strip(" ."):
        raise UsageError(f"name {name!r} is no plain file name; take letters, digits, '.', '-' and '_'")
    if len(name.encode()) > _LONGEST_NAME:
        raise UsageError(f"name {name[:20]!r}... has {len(name.encode())} bytes; take up to {_LONGEST_NAME}")
    return name
