"""Server-sent events, and what an answer's chunks say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sightline.bench.serve.outcome import Outcome

DONE = b"[DONE]"


class EventParser:
    """Bytes in whatever pieces they come, the data of whole events out (WHATWG's event streams; other fields are left
    out). Bytes are split at line ends only, so that a character cut in two comes out whole."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The data of each event that `piece` completes."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                yield self._take()

    def end(self) -> Iterator[bytes]:
        """The data of an event that no empty line ended."""
        yield from self.feed(b"\n\n")

    def _take(self) -> bytes:
        data = b"\n".join(self._data)
        self._data.clear()
        return data


class AnswerReader:
    """Fills an `Outcome` from the chunks of one answer, chat's or completions'.

    A chunk is counted when it brings text, thoughts or a part of a tool call: a role, a finish reason or the usage
    alone is no token. Several tokens that come in one chunk are one moment, as in vLLM's benchmark.
    """

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._events = EventParser()
        self._last_token = 0.0
        self.ended = False  # a finish reason or [DONE] was seen

    def on_data(self, now: float, piece: bytes) -> None:
        """Take the bytes that came at `now`."""
        for data in self._events.feed(piece):
            self._on_event(now, data)

    def finish(self, now: float) -> None:
        """The stream is over; a stream that was cut off is a failure."""
        for data in self._events.end():
            self._on_event(now, data)
        if not (self.ended or self._outcome.kind):
            self._outcome.fail("cut off", "the stream ended without a finish reason or [DONE]")

    def whole(self, now: float, body: bytes) -> None:
        """An answer that came at once, though a stream was asked for."""
        self._on_event(now, body)
        self._outcome.streamed = False

    def _on_event(self, now: float, data: bytes) -> None:
        if data.strip() == DONE:
            self.ended = True
            return
        try:
            chunk = json.loads(data)
        except ValueError:
            chunk = None
        if not isinstance(chunk, dict):
            self._outcome.fail("not understood", f"an event is not a JSON object: {_short(data)}")
            return
        if chunk.get("error"):
            self._outcome.fail("error in the stream", message_of(chunk) or _short(data))
            return
        self._outcome.latency = now - self._outcome.start
        usage, timings = chunk.get("usage"), chunk.get("timings")
        if isinstance(usage, dict):
            self._take_usage(usage)
        if isinstance(timings, dict):
            self._outcome.timings = timings
        choices = chunk.get("choices")
        text = "".join(map(self._text_of, choices)) if isinstance(choices, list) else ""
        if text:
            self._token(now, text)

    def _text_of(self, choice: Any) -> str:
        if not isinstance(choice, dict):
            return ""
        self.ended = self.ended or choice.get("finish_reason") is not None
        if isinstance(choice.get("text"), str):
            return str(choice["text"])
        delta = choice.get("delta") or choice.get("message")
        if not isinstance(delta, dict):
            return ""
        parts = [delta.get(name) for name in ("reasoning_content", "reasoning", "content")]
        calls = delta.get("tool_calls")
        return "".join(part for part in parts if isinstance(part, str)) + (json.dumps(calls) if calls else "")

    def _token(self, now: float, text: str) -> None:
        outcome = self._outcome
        if outcome.chunks:
            outcome.itls.append(now - self._last_token)
        else:
            outcome.ttft = now - outcome.start
        outcome.chunks += 1
        outcome.text += text
        self._last_token = now

    def _take_usage(self, usage: dict[str, Any]) -> None:
        for name, field in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")):
            if isinstance(usage.get(name), int):
                setattr(self._outcome, field, usage[name])


def message_of(body: Any) -> str:
    """The text of an error body: OpenAI's, FastAPI's, or another's that has a message."""
    if not isinstance(body, dict):
        return ""
    found = body.get("error", body.get("detail", body.get("message")))
    if isinstance(found, dict):
        found = found.get("message", found)
    return " ".join((found if isinstance(found, str) else json.dumps(found)).split()) if found else ""


def _short(data: bytes) -> str:
    text = " ".join(data.decode("utf-8", "replace").split())
    return text if len(text) <= 120 else f"{text[:120]}..."
