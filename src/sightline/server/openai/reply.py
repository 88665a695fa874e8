"""What the server answers to a chat request: one object, or the chunks of a stream.

Chunks are written by hand around the text: each token of each client passes here, on the event loop.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sightline.engine.outputs import CompletionOutput, Logprob, RequestOutput
from sightline.engine.stream import Delta
from sightline.server.openai.answers import AnswerText, Pending, message_of, new_call_id
from sightline.server.openai.calls import CallPiece, Piece
from sightline.server.openai.logprobs import TokenNames, chat_logprobs, prompt_logprobs
from sightline.server.openai.tools import Toolbox
from sightline.server.openai.usage import RunningUsage, timings_of, usage_of
from sightline.server.sse import compact, data, quoted

Entries = Sequence[dict[int, Logprob]]


@dataclass(frozen=True)
class Head:
    """What all objects of one answer begin with."""

    kind: str
    model: str
    id: str
    created: int

    @classmethod
    def new(cls, kind: str, model: str, prefix: str, request_id: str | None = None) -> Head:
        return cls(kind, model, f"{prefix}-{request_id or uuid.uuid4().hex}", int(time.time()))

    def object(self, kind: str | None = None) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind or self.kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
        }


@dataclass(frozen=True)
class Told:
    """What a request wants to be told beside the text.

    Attributes:
        logprobs: most likely tokens beside each one; None tells none.
        token_ids: of prompt and answers.
        usage: in the last chunk; running: in each chunk, as far as it has come.
        echoed: what answers begin with.
    """

    names: TokenNames
    toolbox: Toolbox
    logprobs: int | None = None
    token_ids: bool = False
    usage: bool = False
    running: bool = False
    echoed: str = ""


def completion(head: Head, told: Told, output: RequestOutput) -> dict[str, Any]:
    """The object of an answer that is not streamed."""
    body: dict[str, Any] = {
        **head.object(),
        "service_tier": None,
        "choices": [_choice(answer, told) for answer in output.outputs],
        "usage": usage_of([output]),
        "timings": timings_of([output]),
    }
    if output.prompt_logprobs is not None:
        body["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs)
    if told.token_ids:
        body["prompt_token_ids"] = output.prompt_token_ids
    return body


def _choice(answer: CompletionOutput, told: Told) -> dict[str, Any]:
    message, reason = message_of(answer, told.toolbox, told.echoed)
    choice: dict[str, Any] = {
        "index": answer.index,
        "message": message,
        "logprobs": _logprobs(answer.logprobs or [], told),
        "finish_reason": reason,
        "stop_reason": answer.stop_reason,
    }
    if told.token_ids:
        choice["token_ids"] = answer.token_ids
    return choice


def _logprobs(entries: Entries, told: Told) -> dict[str, Any] | None:
    return None if told.logprobs is None else chat_logprobs(entries, told.logprobs, told.names)


class Chunks:
    """The events of a stream, but for `[DONE]`."""

    def __init__(self, head: Head, told: Told, answers: int) -> None:
        self._told = told
        opening = compact(head.object("chat.completion.chunk"))[:-1]
        self._before = f'{opening},"choices":[{{"index":'
        self._empty = f'{opening},"choices":[],"usage":'
        # With usage wanted at the end every other chunk says that it has none, as OpenAI's do.
        self._after = '],"usage":null}' if told.usage else "]}"
        self._texts = [AnswerText(told.toolbox) for _ in range(answers)]
        self._pending = [Pending() for _ in range(answers)]
        self._usage = RunningUsage() if told.running else None
        self._notes = told.logprobs is not None or told.token_ids
        # Nothing is told but text.
        self._plain = not self._notes and not told.running

    def begin(self, output: RequestOutput) -> Iterator[str]:
        """A chunk with the role for each answer."""
        if self._usage is not None:
            self._usage.begin([output])
        for index in range(len(self._texts)):
            delta: dict[str, Any] = {"role": "assistant", "content": ""}
            extra = (
                {"prompt_token_ids": output.prompt_token_ids} if self._told.token_ids and not index else {}
            )
            yield self._chunk(index, compact(delta), more=extra)
            if self._told.echoed:
                yield self._chunk(index, _content(self._told.echoed))

    def tell(self, delta: Delta, outputs: Callable[[], Sequence[RequestOutput]]) -> Iterator[str]:
        """What a delta brings; `outputs` gives the one output so far, where it is needed."""
        index, text = delta.index, self._texts[delta.index]
        if self._usage is not None:
            self._usage.add(0, delta, outputs)
        if self._notes:
            self._pending[index].add(delta)
        for piece in text.feed(delta.text):
            yield self._piece(index, piece)
        if delta.finish_reason is None:
            return
        rest, reason = text.finish(delta.finish_reason)
        for piece in rest:
            yield self._piece(index, piece)
        if self._pending[index].token_ids:
            yield self._chunk(index, _content(""))
        more = {"stop_reason": delta.stop_reason} if delta.stop_reason is not None else None
        yield self._chunk(index, "{}", reason, choice=more)

    def end(self, output: RequestOutput) -> Iterator[str]:
        """The chunk without choices that tells the usage, where that is wanted."""
        if self._told.usage:
            body: dict[str, Any] = {"usage": usage_of([output]), "timings": timings_of([output])}
            if output.prompt_logprobs is not None:
                body["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs)
            yield data(self._empty + compact(body)[len('{"usage":') :])

    def _piece(self, index: int, piece: Piece) -> str:
        delta = _content(piece) if isinstance(piece, str) else compact({"tool_calls": [_call(piece)]})
        return self._chunk(index, delta)

    def _chunk(
        self,
        index: int,
        delta: str,
        reason: str | None = None,
        *,
        choice: dict[str, Any] | None = None,
        more: dict[str, Any] | None = None,
    ) -> str:
        """One event; `choice` and `more` are further fields of the choice and of the chunk."""
        ended = "null" if reason is None else f'"{reason}"'
        if self._plain and not choice and not more:
            return (
                f'data: {self._before}{index},"delta":{delta},"logprobs":null,"finish_reason":{ended}}}'
                f"{self._after}\n\n"
            )
        told, fields = "null", dict(choice or {})
        if not self._plain:
            new = self._pending[index].take()
            if new.logprobs:
                told = compact(_logprobs(new.logprobs, self._told))
            if self._told.token_ids and new.token_ids:
                fields["token_ids"] = new.token_ids
        rest = dict(more or {})
        after = self._after
        if self._usage is not None:
            rest["usage"], after = self._usage.told(), "]}"
        return data(
            f'{self._before}{index},"delta":{delta},"logprobs":{told},"finish_reason":{ended}{_fields(fields)}}}'
            f"{after[:-1]}{_fields(rest)}}}"
        )


def _fields(values: dict[str, Any]) -> str:
    return f",{compact(values)[1:-1]}" if values else ""


def _content(text: str) -> str:
    return f'{{"content":{quoted(text)}}}'


def _call(piece: CallPiece) -> dict[str, Any]:
    function = {"arguments": piece.arguments}
    if piece.name is None:
        return {"index": piece.index, "function": function}
    return {
        "index": piece.index,
        "id": new_call_id(),
        "type": "function",
        "function": {"name": piece.name, **function},
    }
