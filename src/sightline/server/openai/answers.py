"""One answer between the engine and a reply: text and calls told apart, and what tokens say kept for a chunk."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from sightline.engine.outputs import CompletionOutput, Logprob
from sightline.engine.stream import Delta
from sightline.server.openai.calls import CallPiece, CallReader, Piece
from sightline.server.openai.tools import Toolbox


class AnswerText:
    """The text of one growing answer. Without tools it passes as it is."""

    def __init__(self, toolbox: Toolbox) -> None:
        self._reader = CallReader(live=toolbox.held) if toolbox else None

    def feed(self, text: str) -> list[Piece]:
        if self._reader is not None:
            return self._reader.feed(text)
        return [text] if text else []

    def finish(self, reason: str) -> tuple[list[Piece], str]:
        """What was held back, and why the answer ended as OpenAI tells it."""
        if self._reader is None:
            return [], reason
        rest = self._reader.finish()
        return rest, "tool_calls" if self._reader.calls and reason == "stop" else reason


@dataclass
class Pending:
    """What tokens brought that no chunk has told yet: half a character has no text."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs or []

    def take(self) -> Pending:
        taken = Pending(self.token_ids, self.logprobs)
        self.token_ids, self.logprobs = [], []
        return taken


def message_of(answer: CompletionOutput, toolbox: Toolbox, echoed: str) -> tuple[dict[str, Any], str | None]:
    """The message of a whole answer, and why it ended; the same as its stream joined."""
    text = AnswerText(toolbox)
    pieces = text.feed(answer.text)
    rest, reason = text.finish(answer.finish_reason or "stop")
    content = echoed + "".join(piece for piece in [*pieces, *rest] if isinstance(piece, str))
    calls: list[dict[str, Any]] = []
    for piece in [*pieces, *rest]:
        if isinstance(piece, CallPiece):
            if piece.name is not None:
                function = {"name": piece.name, "arguments": ""}
                calls.append({"id": new_call_id(), "type": "function", "function": function})
            calls[piece.index]["function"]["arguments"] += piece.arguments
    message: dict[str, Any] = {"role": "assistant", "content": content or (None if calls else "")}
    message["refusal"] = None
    if calls:
        message["tool_calls"] = calls
    return message, reason


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


async def spaced(deltas: AsyncIterator[Delta], tokens: int) -> AsyncGenerator[Delta, None]:
    """Deltas of at least so many tokens, but for the first and the last one of each answer."""
    waiting: dict[int, Delta] = {}
    begun: set[int] = set()
    async for delta in deltas:
        index = delta.index
        joined = waiting.pop(index).joined(delta) if index in waiting else delta
        if index in begun and joined.finish_reason is None and len(joined.token_ids) < tokens:
            waiting[index] = joined
            continue
        begun.add(index)
        yield joined
