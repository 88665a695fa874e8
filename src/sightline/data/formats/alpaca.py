"""alpaca: instruction, input, output; optional system, history and media. Also SWIFT's query and response."""

from __future__ import annotations

from sightline.data.conversation import RowError
from sightline.data.formats.base import Row, RowFormat, media_of, rest_of, string

_TAKEN = ("instruction", "input", "output", "query", "response", "system", "history")


def matches(row: Row) -> bool:
    return ("instruction" in row and "output" in row) or ("query" in row and "response" in row)


def convert(row: Row) -> Row:
    messages = []
    system = string(row, "system", default="")
    if system:
        messages.append({"role": "system", "content": system})
    for question, answer in _history(row):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    question, answer = _question(row), string(row, "output" if "output" in row else "response")
    messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **media_of(row), **rest_of(row, *_TAKEN)}


def _question(row: Row) -> str:
    if "instruction" not in row:
        return string(row, "query")
    parts = (string(row, "instruction"), string(row, "input", default=""))
    return "\n".join(part for part in parts if part)


def _history(row: Row) -> list[tuple[str, str]]:
    history = row.get("history") or []
    if not isinstance(history, list):
        raise RowError("history must be a list of [question, answer] pairs")
    for pair in history:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(x, str) for x in pair):
            raise RowError("history must be a list of [question, answer] pairs")
    return [(pair[0], pair[1]) for pair in history]


ALPACA = RowFormat("alpaca", matches, convert)
