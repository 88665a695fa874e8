"""What an answer's past and its settings say about its next token: penalties, biases, bans.

One object an answer, kept up token by token, so that a step costs the same after ten tokens as after ten thousand.
How it meets the logits is `sightline.engine.sampling.penalties`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sightline.engine.sampling.params import SamplingParams
from sightline.engine.sampling.structured.matcher import Mask, Matcher


class Rules:
    """The rules of one answer.

    Attributes:
        tokens: the answer's tokens that count (`push` and `pop` change them).
        allowed: int64 ids, the only ones to choose from; None allows all.
        structure: the answer's place in the form that was asked for, or None.
        ids, counts, seen, biases: a table of the tokens that penalties and biases touch, one row each: int64
            token, float32 times it is in the answer, bool whether the prompt holds it, float32 bias.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        prompt: Sequence[int] = (),
        ends: Iterable[int] = (),
        bad_words: Sequence[Sequence[int]] = (),
        structure: Matcher | None = None,
    ) -> None:
        self.params = params
        self.structure = structure
        self.tokens: list[int] = []
        self.allowed = None if params.allowed_token_ids is None else np.unique(params.allowed_token_ids)
        self._ends = sorted(ends)
        self._never = sorted({word[0] for word in bad_words if len(word) == 1})
        # Longer ones by the token before the last, so that a long list costs nothing while none of it begins.
        self._bad: dict[int, list[Sequence[int]]] = {}
        for word in bad_words:
            if len(word) > 1:
                self._bad.setdefault(word[-2], []).append(word)
        self._repetition = params.repetition_penalty != 1.0
        self._counted = self._repetition or params.presence_penalty != 0 or params.frequency_penalty != 0
        self._rows: dict[int, int] = {}
        self._ids, self._counts = np.empty(0, np.int64), np.empty(0, np.float32)
        self._seen, self._biases = np.empty(0, np.bool_), np.empty(0, np.float32)
        for token, bias in (params.logit_bias or {}).items():
            row = self._row(token)
            self._biases[row] = bias
        if self._repetition:
            for token in set(prompt):
                row = self._row(token)
                self._seen[row] = True

    @property
    def quiet(self) -> bool:
        """Whether the next token may be chosen from the logits as they are."""
        free = self.structure is None or self.structure.astray
        return free and not self._rows and self.allowed is None and not self.banned()

    @property
    def ids(self) -> np.ndarray[Any, Any]:
        return self._ids[: len(self._rows)]

    @property
    def counts(self) -> np.ndarray[Any, Any]:
        return self._counts[: len(self._rows)]

    @property
    def seen(self) -> np.ndarray[Any, Any]:
        return self._seen[: len(self._rows)]

    @property
    def biases(self) -> np.ndarray[Any, Any]:
        return self._biases[: len(self._rows)]

    def banned(self) -> list[int]:
        """Tokens that may not come next: ends that are too early, and the last tokens of bad words."""
        banned = list(self._never)
        if len(self.tokens) < self.params.min_tokens:
            banned += self._ends
        for word in self._bad.get(self.tokens[-1], ()) if self._bad and self.tokens else ():
            if self.tokens[1 - len(word) :] == list(word[:-1]):
                banned.append(word[-1])
        return banned

    def mask(self) -> tuple[Mask | None, bool]:
        """What the answer's form allows next, as `Matcher.mask`; nothing of it where no form was asked for."""
        return (
            (None, False) if self.structure is None else self.structure.mask(ends=not self.params.ignore_eos)
        )

    def push(self, token: int) -> None:
        """The answer grows by `token`."""
        self.tokens.append(token)
        if self.structure is not None:
            self.structure.push(token)
        if self._counted:
            row = self._row(token)
            self._counts[row] += 1

    def pop(self) -> None:
        """Take the newest token back; it leaves no trace but an idle row of the table."""
        token = self.tokens.pop()
        if self.structure is not None:
            self.structure.pop()
        if self._counted:
            self._counts[self._rows[token]] -= 1

    def _row(self, token: int) -> int:
        row = self._rows.setdefault(token, len(self._rows))
        if row == len(self._ids):
            room = max(64, len(self._ids))
            self._ids = np.concatenate([self._ids, np.zeros(room, np.int64)])
            self._counts = np.concatenate([self._counts, np.zeros(room, np.float32)])
            self._seen = np.concatenate([self._seen, np.zeros(room, np.bool_)])
            self._biases = np.concatenate([self._biases, np.zeros(room, np.float32)])
        self._ids[row] = token
        return row


def bad_word_tokens(words: Iterable[str], tokenizer: Any) -> list[list[int]]:
    """The token runs that spell each word at the start of a text and after a space."""
    found: list[list[int]] = []
    for word in words:
        for text in (word, " " + word.lstrip()):
            ids = list(tokenizer.encode(text, add_special_tokens=False))
            if ids and ids not in found:
                found.append(ids)
    return found
