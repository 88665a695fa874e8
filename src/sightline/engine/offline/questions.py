"""Where questions come from: one prompt, a dataset, or a folder of pictures and videos."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightline.data.conversation import Conversation, Image, Message, Origin, Part, RowError, Text, Video
from sightline.data.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from sightline.data.rows import parse_row, read_rows, to_row
from sightline.errors import UsageError

# A faulty row stays in its place among the questions, so that the results count and name it.
Question = Conversation | RowError


def from_prompt(prompt: str, images: Sequence[str] = (), videos: Sequence[str] = ()) -> list[Question]:
    """One question: pictures, then videos, then the prompt."""
    parts: list[Part] = [Image(_absolute(path)) for path in images]
    parts += [Video(_absolute(path)) for path in videos]
    return [Conversation([Message("user", [*parts, Text(prompt)])])]


def from_dataset(
    path: str | Path, *, media_root: str | Path | None = None, max_samples: int | None = None
) -> list[Question]:
    """The rows of a jsonl or json file. A faulty row comes as its RowError.

    Raises:
        SightlineError: there is no such file, or it is not JSON.
    """
    questions: list[Question] = []
    root = None if media_root is None else Path(media_root)
    for origin, row in read_rows(path, max_samples=max_samples):
        questions.append(_question(row, origin, Path(path).parent, root))
    if not questions:
        raise UsageError(f"{path} holds no rows")
    return questions


def from_folder(folder: str | Path, prompt: str) -> list[Question]:
    """Every picture and video below `folder`, in sorted order, each followed by `prompt`.

    Raises:
        UsageError: not a folder, or nothing of a known kind in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; give one with pictures or videos")
    known = IMAGE_SUFFIXES + VIDEO_SUFFIXES
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in known and path.is_file())
    if not files:
        kinds = ", ".join(suffix.removeprefix(".") for suffix in known)
        raise UsageError(f"{folder} holds no pictures or videos ({kinds})")
    return [_about(path, prompt) for path in files]


def request_of(question: Question) -> dict[str, Any]:
    """What a question asks, as plain values: the reference answer and other columns are no part of it."""
    if isinstance(question, RowError):
        return {"error": str(question)}
    asked = question.without_answer()
    return to_row(Conversation(asked.messages))


def _question(row: Any, origin: Origin, folder: Path, root: Path | None) -> Question:
    if isinstance(row, RowError):
        return row
    try:
        conversation = parse_row(row, origin=origin, folder=folder, media_root=root)
    except RowError as error:
        return error
    if not conversation.without_answer().messages:
        return RowError("the row asks nothing: it has only an answer", origin)
    return conversation


def _about(path: Path, prompt: str) -> Question:
    medium = Image(_absolute(path)) if path.suffix.lower() in IMAGE_SUFFIXES else Video(_absolute(path))
    return Conversation([Message("user", [medium, Text(prompt)])])


def _absolute(path: str | Path) -> str:
    """Results may lie elsewhere than the pictures; URLs stay as they are."""
    text = str(path)
    return text if text[:5].lower() == "data:" or "://" in text else os.path.abspath(text)  # noqa: PTH100
