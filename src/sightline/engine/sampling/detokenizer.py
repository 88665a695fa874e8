"""Tokens to text as they come: never half a character, and never past a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_HALF = "\ufffd"  # what a decoder gives for bytes that are not (yet) a character
_WINDOW = 16  # tokens decoded again at most, but for a decoder that needs more to say what it said before
_CHARACTER = 4  # bytes of the longest character: so many tokens settle whatever came before them


class Detokenizer:
    """The text of one growing answer; a token costs the same however long the answer is.

    `text` is all that is decided. `take()` gives what may be shown of it: a tail that could still become a
    stop text is kept back until it cannot.

    Args:
        tokenizer: of transformers.
        stops: texts that end the answer.
        keep_stop: leave the stop text at the end of the answer.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        stops: Sequence[str] = (),
        keep_stop: bool = False,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._settings = {
            "skip_special_tokens": skip_special_tokens,
            "spaces_between_special_tokens": spaces_between_special_tokens,
            "clean_up_tokenization_spaces": False,
        }
        self._stops = tuple(stops)
        self._keep_stop = keep_stop
        self._longest_stop = max(map(len, self._stops), default=0)
        # The newest tokens, the first `_context` of which are in the text already: a decoder writes a token
        # otherwise where it is the first. `_known` is their text.
        self._ids: list[int] = []
        self._context = 0
        self._known = ""
        self._pieces: list[str] = []
        self._tail = ""  # the end of the text, as far as a stop text can reach back into it
        self._open: list[str] = []  # text that was not taken yet

    @property
    def text(self) -> str:
        """All text that is decided."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def add(self, token: int, *, may_stop: bool = True) -> str | None:
        """Take one more token. Returns the stop text if that ended the answer; `text` ends before it."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if len(text) <= len(self._known) or text.endswith(_HALF):
            if len(self._ids) - self._context >= _WINDOW:
                return self._settle(text, may_stop)
            return None
        delta = text[len(self._known) :]
        self._ids = self._ids[self._context :]
        self._context = len(self._ids)
        self._known = self._decode(self._ids)
        return self._append(delta, may_stop)

    def finish(self, *, cut: bool = False) -> None:
        """No token follows, so nothing is held back any more.

        Bytes at the end that make no character become the decoder's replacement character, unless the answer
        was `cut` short: the next token would have completed them, so half a character is left out.
        """
        text = self._decode(self._ids)
        if len(text) > len(self._known):
            rest = text[len(self._known) :]
            self._append(rest.rstrip(_HALF) if cut else rest, may_stop=False)
        self._ids, self._context, self._known = [], 0, ""
        self._stops = ()

    def take(self) -> str:
        """The text since the last call that no stop text can take back."""
        fresh = "".join(self._open)
        end = len(fresh) - self._held_back(fresh)
        self._open = [fresh[end:]] if end < len(fresh) else []
        return fresh[:end]

    def _append(self, delta: str, may_stop: bool) -> str | None:
        self._pieces.append(delta)
        self._open.append(delta)
        end, before = self._tail + delta, len(self._tail)
        self._tail = end[max(0, len(end) - self._longest_stop) :]
        if not may_stop:
            return None
        # Only where the new text takes part: what came earlier was looked through already.
        places = [(end.find(stop, max(0, before - len(stop) + 1)), stop) for stop in self._stops]
        found = [(at, stop) for at, stop in places if at >= 0]
        if not found:
            return None
        at, stop = min(found)
        self._cut(len(end) - at - (len(stop) if self._keep_stop else 0))
        return stop

    def _cut(self, count: int) -> None:
        """Take `count` characters back. None of them was taken: a stop text's beginning is held back."""
        text, fresh = self.text, "".join(self._open)
        self._pieces, self._open = [text[: len(text) - count]], [fresh[: len(fresh) - count]]

    def _held_back(self, fresh: str) -> int:
        """Length of the longest end that begins a stop text."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(fresh)), longest, -1):
                if fresh.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _settle(self, text: str, may_stop: bool) -> str | None:
        """Make the window short again when many tokens have given no whole character.

        They have no text at all (special tokens that are left out), or are bytes of no character (a model gone
        astray). What is done here is checked: the decoder must say the same of the shorter window.
        """
        if (len(self._ids) - self._context) % _WINDOW:
            return None  # it could not be done the last time: try again later, not at each token
        if text == self._known:
            shorter = self._ids[: self._context] + self._ids[-_CHARACTER:]
            if self._decode(shorter) == text:
                self._ids = shorter
            return None
        for end in range(len(self._ids) - _CHARACTER, self._context, -1):
            done, context = self._decode(self._ids[:end]), self._decode(self._ids[end - 1 : end])
            if done + self._decode(self._ids[end - 1 :])[len(context) :] == text:
                delta = done[len(self._known) :]
                self._ids, self._context, self._known = self._ids[end - 1 :], 1, context
                return self._append(delta, may_stop)
        return None

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, **self._settings))
