"""Tokens to text as they come: never half a character, and never past a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_HALF = "\ufffd"  # what a decoder gives for bytes that are not (yet) a character


class Detokenizer:
    """The text of one growing answer.

    `text` is all that is decided. `take()` gives what may be shown of it: a tail that could still become a
    stop text is kept back until it cannot.
    """

    def __init__(
        self, tokenizer: Any, *, stops: Sequence[str] = (), skip_special_tokens: bool = True
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._stops = tuple(stops)
        self._ids: list[int] = []
        # Tokens before `_start` are done; those up to `_shown` are in `text` and are the decoder's context.
        self._start = self._shown = 0
        self._taken = 0
        self.text = ""

    def add(self, token: int, *, may_stop: bool = True) -> str | None:
        """Take one more token. Returns the stop text if that ended the answer; `text` ends before it."""
        self._ids.append(token)
        known, text = self._decode(self._start, self._shown), self._decode(self._start, None)
        if len(text) <= len(known) or text.endswith(_HALF):
            return None
        return self._append(text[len(known) :], may_stop)

    def finish(self, *, cut: bool = False) -> None:
        """No token follows, so nothing is held back any more.

        Bytes at the end that make no character become the decoder's replacement character, unless the answer
        was `cut` short: the next token would have completed them, so half a character is left out.
        """
        known, text = self._decode(self._start, self._shown), self._decode(self._start, None)
        if len(text) > len(known):
            rest = text[len(known) :]
            self._append(rest.rstrip(_HALF) if cut else rest, may_stop=False)
        self._stops = ()

    def take(self) -> str:
        """The text since the last call that no stop text can take back."""
        end = max(self._taken, len(self.text) - self._held_back())
        piece, self._taken = self.text[self._taken : end], end
        return piece

    def _append(self, delta: str, may_stop: bool) -> str | None:
        self._start, self._shown = self._shown, len(self._ids)
        before = len(self.text)
        self.text += delta
        if not may_stop:
            return None
        found = [(at, stop) for stop in self._stops if (at := self._find(stop, before)) >= 0]
        if not found:
            return None
        at, stop = min(found)
        self.text = self.text[:at]
        return stop

    def _find(self, stop: str, before: int) -> int:
        # Only where the new text takes part: what came earlier was looked through already.
        return self.text.find(stop, max(0, before - len(stop) + 1))

    def _held_back(self) -> int:
        """Length of the longest tail that begins a stop text."""
        longest = 0
        for stop in self._stops:
            for length in range(min(len(stop) - 1, len(self.text)), longest, -1):
                if self.text.endswith(stop[:length]):
                    longest = length
                    break
        return longest

    def _decode(self, start: int, end: int | None) -> str:
        return str(
            self._tokenizer.decode(
                self._ids[start:end], skip_special_tokens=self._skip, clean_up_tokenization_spaces=False
            )
        )
