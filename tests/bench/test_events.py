"""What an answer's bytes say, however they are cut."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sightline.bench.serve.events import AnswerReader, EventParser, message_of
from sightline.bench.serve.outcome import Outcome


def chunk(text: str | None = None, *, finish: str | None = None, **more: Any) -> bytes:
    fields = {"content": text} if text is not None else {}
    choice = {"index": 0, "delta": {**fields, **more}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}, ensure_ascii=False).encode() + b"\n\n"


def read(*pieces: tuple[float, bytes], end: float = 99.0) -> Outcome:
    outcome = Outcome(start=10.0)
    reader = AnswerReader(outcome)
    for moment, piece in pieces:
        reader.on_data(moment, piece)
    reader.finish(end)
    return outcome


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_come_whole_however_the_bytes_are_cut(size: int) -> None:
    stream = ': hello\r\ndata: {"a": "é汉😀"}\r\n\r\nevent: x\ndata:one\ndata: two\n\ndata: last'.encode()
    parser = EventParser()
    found = [event for at in range(0, len(stream), size) for event in parser.feed(stream[at : at + size])]
    assert [*found, *parser.end()] == ['{"a": "é汉😀"}'.encode(), b"one\ntwo", b"last"]


def test_only_chunks_with_text_are_tokens() -> None:
    outcome = read(
        (11.0, chunk("", role="assistant")),
        (12.0, chunk("a")),
        (12.5, chunk("b")),
        (14.0, chunk(finish="length")),
        (15.0, b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 4}}\n\n'),
        (20.0, b"data: [DONE]\n\n"),
    )
    assert (outcome.ttft, outcome.itls, outcome.latency) == (2.0, [0.5], 5.0)
    assert (outcome.text, outcome.chunks, outcome.tokens, outcome.prompt_tokens) == ("ab", 2, 4, 5)
    assert outcome.tpot == 1.0  # (5 - 2) / (4 - 1)
    assert outcome.ok


def test_several_chunks_that_come_at_once_have_no_time_between_them() -> None:
    outcome = read((11.0, chunk("a")), (12.0, chunk("b") + chunk("c") + chunk(finish="stop")))
    assert outcome.itls == [1.0, 0.0]
    assert outcome.tokens == 3  # nobody counted: the chunks


def test_thoughts_and_tool_calls_are_text() -> None:
    calls = [{"index": 0, "function": {"name": "look"}}]
    outcome = read(
        (11.0, chunk(reasoning_content="hm")), (12.0, chunk(tool_calls=calls, finish="tool_calls"))
    )
    assert outcome.chunks == 2
    assert outcome.text.startswith("hm")


@pytest.mark.parametrize(
    ("stream", "kind", "words"),
    [
        (chunk("a"), "cut off", "without a finish reason"),
        (
            chunk("a") + b'data: {"error": {"message": "out of memory"}}\n\n',
            "error in the stream",
            "out of memory",
        ),
        (b"data: <html>\n\n", "not understood", "<html>"),
        (b"data: [1]\n\n", "not understood", "[1]"),
    ],
)
def test_a_broken_stream_is_a_failure(stream: bytes, kind: str, words: str) -> None:
    outcome = read((11.0, stream))
    assert outcome.kind == kind
    assert words in outcome.error


def test_completions_send_their_text_in_the_choice() -> None:
    event = b'data: {"choices": [{"text": "x", "finish_reason": "stop"}]}\n\n'
    assert read((11.0, event)).text == "x"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"error": {"message": "no such\nmodel"}}, "no such model"),
        ({"detail": "Unexpected fields"}, "Unexpected fields"),
        ({"detail": [{"loc": ["body"]}]}, '[{"loc": ["body"]}]'),
        ([], ""),
        ({}, ""),
    ],
)
def test_error_bodies_of_all_kinds(body: Any, text: str) -> None:
    assert message_of(body) == text
