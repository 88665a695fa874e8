"""Formats that have role/content messages already: sharegpt as SWIFT writes it, and OpenAI's parts."""

from __future__ import annotations

from sightline.data.formats.base import Row, RowFormat


def _turns(row: Row) -> object:
    return row.get("messages") or row.get("conversations")


def matches_sharegpt(row: Row) -> bool:
    return isinstance(_turns(row), list) and not matches_openai(row)


def matches_openai(row: Row) -> bool:
    turns = _turns(row)
    return isinstance(turns, list) and any(
        isinstance(turn, dict) and isinstance(turn.get("content"), list) for turn in turns
    )


def convert(row: Row) -> Row:
    """Ours already, but for `conversations` as the name of the list."""
    if "messages" in row or "conversations" not in row:
        return row
    return {"messages": row["conversations"], **{key: row[key] for key in row if key != "conversations"}}


SHAREGPT = RowFormat("sharegpt", matches_sharegpt, convert)
OPENAI = RowFormat("openai", matches_openai, convert)
