"""Guesses at the next tokens without a second model: what followed the same words before (prompt lookup).

An answer about a document or a list often repeats parts of its prompt or of itself. Where the last few tokens
have been seen before, the tokens that came after them then are proposed; the model checks all of them in one
step, and the sampler keeps those that it would have chosen anyway.
"""

from __future__ import annotations

from collections.abc import Sequence


class NgramIndex:
    """Where each run of tokens of one sequence was last seen, kept up as the sequence grows.

    A token costs one dictionary entry per length; a proposal as many look-ups, however long the sequence is.
    """

    def __init__(self, *, longest: int, shortest: int) -> None:
        self._lengths = range(longest, shortest - 1, -1)
        # By run of tokens: the place behind its last occurrence. The run at the very end is not in it yet.
        self._places: dict[tuple[int, ...], int] = {}
        self._known = 0

    def propose(self, tokens: Sequence[int], *, most: int) -> list[int]:
        """Up to `most` tokens that may come next; empty where the end of `tokens` is new.

        The longest run counts, and its most recent occurrence. Between calls `tokens` may only grow.
        """
        self._catch_up(tokens)
        for length in self._lengths:
            if length >= len(tokens):
                continue
            place = self._places.get(tuple(tokens[-length:]))
            if place is not None:
                # Behind the end of the sequence it goes on as it would if the piece were repeated again.
                period = len(tokens) - place
                return [tokens[place + number % period] for number in range(most)]
        return []

    def _catch_up(self, tokens: Sequence[int]) -> None:
        for end in range(self._known + 1, len(tokens)):
            for length in self._lengths:
                if length <= end:
                    self._places[tuple(tokens[end - length : end])] = end
        self._known = max(self._known, len(tokens) - 1)


def propose(tokens: Sequence[int], *, most: int, longest: int, shortest: int) -> list[int]:
    """`NgramIndex.propose` for a sequence that is looked at once; reads all of `tokens`."""
    return NgramIndex(longest=longest, shortest=shortest).propose(tokens, most=most)
