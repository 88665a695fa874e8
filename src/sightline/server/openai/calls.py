"""The calls in an answer's text: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, read as they come.

However the text is cut into pieces, the same comes out. A block that is no sound call stays text, and so does one
that the answer's end cuts short: nothing is lost. White space around calls is the format's, not the answer's.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from sightline.server.openai.tools import CLOSE, OPEN

_MARK = re.compile(r'["\\\n<]')
_DECODER = json.JSONDecoder()
_SPACE = " \t\r\n"
# What a call begins with where a grammar holds the model to it.
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')


@dataclass(frozen=True)
class CallPiece:
    """More of call number `index`: its name, which comes first and once, or some of its arguments, JSON text."""

    index: int
    name: str | None = None
    arguments: str = ""


Piece = str | CallPiece


class CallReader:
    """Tells text and calls of one growing answer apart.

    Args:
        live: give arguments as they come. Only where a grammar holds the model to sound calls, because what was
            given cannot become text again.
    """

    def __init__(self, *, live: bool = False) -> None:
        self.calls = 0
        self._live = live
        self._space = ""  # the newest white space, which is the answer's only if text follows
        self._held = ""  # the text from what may be the beginning of a tag on
        self._block: _Block | None = None  # inside of a call

    def feed(self, text: str) -> list[Piece]:
        """What is decided with this text."""
        self._held += text
        found: list[Piece] = []
        while self._step(found):
            pass
        return found

    def finish(self) -> list[Piece]:
        """Nothing follows. A call that lacks its closing tag alone, or an end of it, counts."""
        found: list[Piece] = []
        block, self._block = self._block, None
        body = self._held[len(OPEN) : len(self._held) - _begun(self._held, CLOSE)]
        if block is None or not block.close(body, self, found):
            self._say(self._held, found)
        if self._space and not self.calls:
            found.append(self._space)
        self._held = self._space = ""
        return found

    def _step(self, found: list[Piece]) -> bool:
        """One step through what is held; False where more text is needed."""
        if self._block is None:
            at = self._held.find(OPEN)
            end = at if at >= 0 else len(self._held) - _begun(self._held, OPEN)
            self._say(self._held[:end], found)
            self._held = self._held[end:]
            self._block = _Block(self._live) if at >= 0 else None
            return at >= 0
        body = self._held[len(OPEN) :]
        start = body.lstrip(_SPACE)[:1]
        if start not in ("", "{"):  # so that an answer about tags is not held back
            self._block = None
            self._say(OPEN, found)
            self._held = body
            return True
        close = self._block.find_end(body)
        if self._live:
            self._block.give(body, self, found)
        if close is None:
            return False
        after = len(OPEN) + close + (len(CLOSE) if body.startswith(CLOSE, close) else 0)
        if not self._block.close(body[:close], self, found):
            self._say(self._held[:after], found)
        self._block = None
        self._held = self._held[after:]
        return True

    def begin(self, name: str, found: list[Piece]) -> int:
        """A call begins; gives its number."""
        self._space = ""
        self.calls += 1
        found.append(CallPiece(self.calls - 1, name))
        return self.calls - 1

    def _say(self, text: str, found: list[Piece]) -> None:
        end = len(text.rstrip(_SPACE))
        if end:
            found.append(self._space + text[:end])
            self._space = text[end:]
        else:
            self._space += text


class _Block:
    """What stands behind an opening tag, up to the next tag that is not inside of a JSON string."""

    def __init__(self, live: bool) -> None:
        self._live = live
        self._at = 0
        self._quoted = False
        self._index: int | None = None  # of the call, once its name was given
        self._begin = self._given = 0  # where its arguments begin, and how far they were given

    def find_end(self, body: str) -> int | None:
        """Where the block ends in `body`, which is looked through once however often it has grown."""
        while (mark := _MARK.search(body, self._at)) is not None:
            at, sign = mark.start(), mark[0]
            if self._quoted and sign == "\\":
                if at + 1 == len(body):
                    self._at = at
                    return None
                at += 1
            elif sign == '"':
                self._quoted = not self._quoted
            elif sign == "\n":
                self._quoted = False  # no JSON string goes over a line's end
            elif sign == "<" and not self._quoted:
                if body.startswith((OPEN, CLOSE), at):
                    self._at = at
                    return at
                rest = body[at:]
                if OPEN.startswith(rest) or CLOSE.startswith(rest):
                    self._at = at
                    return None
            self._at = at + 1
        self._at = len(body)
        return None

    def give(self, body: str, reader: CallReader, found: list[Piece]) -> None:
        """What of the call is known already: its name, then its arguments up to their last decided character."""
        if self._index is None:
            head = _HEAD.match(body)
            if head is None:
                return
            self._index = reader.begin(json.loads(head[1]), found)
            self._begin = self._given = head.end()
        # The last brace closes the call, and what follows it is the format's.
        end = len(body[: self._at].rstrip(_SPACE + "}"))
        if end > self._given:
            found.append(CallPiece(self._index, arguments=body[self._given : end]))
            self._given = end

    def close(self, body: str, reader: CallReader, found: list[Piece]) -> bool:
        """The block ends here; False where it is no call."""
        call = _call(body)
        if self._index is not None:
            # Cut short by the answer's end, they are told as far as they came, as OpenAI does.
            end = _value_end(body, self._begin)
            if end > self._given:
                found.append(CallPiece(self._index, arguments=body[self._given : end]))
            return True
        if call is None:
            return False
        found.append(CallPiece(reader.begin(call[0], found), arguments=call[1]))
        return True


def _call(body: str) -> tuple[str, str] | None:
    """Name and arguments, the latter as the model wrote them."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        return value["name"], arguments
    if arguments is not None and not isinstance(arguments, dict):
        return None
    head = _HEAD.match(body)
    if head is not None and set(value) == {"name", "arguments"}:
        return value["name"], body[head.end() : _value_end(body, head.end())]
    return value["name"], json.dumps(arguments or {}, ensure_ascii=False)


def _value_end(body: str, start: int) -> int:
    """Where the JSON value ends that starts there; the text's end if it does not."""
    try:
        return _DECODER.raw_decode(body, start)[1]
    except (ValueError, RecursionError):
        return len(body)


def _begun(text: str, tag: str) -> int:
    """Length of the longest end that begins a tag."""
    for length in range(min(len(tag) - 1, len(text)), 0, -1):
        if text.endswith(tag[:length]):
            return length
    return 0
