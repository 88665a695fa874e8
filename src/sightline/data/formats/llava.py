"""LLaVA and the Qwen-VL recipes: `conversations` of from/value turns, `image` or `video` beside them."""

from __future__ import annotations

from sightline.data.conversation import RowError
from sightline.data.formats.base import Row, RowFormat, media_of, rest_of

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}


def matches(row: Row) -> bool:
    turns = row.get("conversations")
    return isinstance(turns, list) and (not turns or not isinstance(turns[0], dict) or "from" in turns[0])


def convert(row: Row) -> Row:
    turns = row.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise RowError("conversations must be a list with at least one {from, value}")
    messages = [_message(turn, index) for index, turn in enumerate(turns, 1)]
    if isinstance(row.get("system"), str) and row["system"] and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": row["system"]})
    return {"messages": messages, **media_of(row), **rest_of(row, "conversations", "system")}


def _message(turn: object, index: int) -> Row:
    if not isinstance(turn, dict):
        raise RowError(f"turn {index} is not an object with from and value")
    speaker, value = turn.get("from"), turn.get("value")
    if not isinstance(speaker, str) or speaker.lower() not in _ROLES:
        raise RowError(f"turn {index} is from {speaker!r}; use {', '.join(_ROLES)}")
    if not isinstance(value, str):
        raise RowError(f"turn {index} has no value string")
    return {"role": _ROLES[speaker.lower()], "content": value}


LLAVA = RowFormat("llava", matches, convert)
