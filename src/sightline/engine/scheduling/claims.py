"""Which media's features a prompt's next chunk needs, and how far it gets with those that can be had.

Features are claimed when a chunk first touches their medium and released behind its last token. A sequence that
waits in front of a medium therefore holds none, and sequences cannot wait for one another's features forever.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from sightline.engine.scheduling.request import Request
from sightline.engine.scheduling.sequence import Sequence
from sightline.engine.scheduling.step import Chunk


class FeatureStore(Protocol):
    """What the scheduler asks of the encoder cache.

    `reserve` gives room for features to come and pins it; it must not refuse while nothing is pinned.
    An `unpin` of the last pin gives back room whose features never came.
    """

    def has(self, key: bytes) -> bool: ...

    def reserve(self, key: bytes, rows: int) -> bool: ...

    def pin(self, key: bytes) -> None: ...

    def unpin(self, key: bytes) -> None: ...


class Claims:
    """The features that running sequences hold, and those that the present step encodes.

    Args:
        most: vision tokens that one step encodes; a single medium may have more.
    """

    def __init__(self, features: FeatureStore, most: int) -> None:
        self._features = features
        self._most = most
        self._encoded = 0
        self._new: dict[bytes, int] = {}

    def begin(self) -> None:
        """A new step: its encoding budget is whole again."""
        self._encoded = 0
        self._new.clear()

    def reach(self, sequence: Sequence, end: int) -> int:
        """How far a chunk from `sequence.computed` may go, at most to `end`; claims the features on its way."""
        for span in sequence.request.spans_between(sequence.computed, end):
            if span.medium not in sequence.pinned and not self._claim(sequence, span.medium):
                return max(span.start, sequence.computed)
        return end

    def _claim(self, sequence: Sequence, index: int) -> bool:
        medium = sequence.request.media[index]
        if medium.key in self._new or self._features.has(medium.key):
            self._features.pin(medium.key)
        elif self._encoded and self._encoded + medium.tokens > self._most:
            return False
        elif self._features.reserve(medium.key, medium.tokens):
            self._encoded += medium.tokens
            self._new[medium.key] = 0
        else:
            return False
        if medium.key in self._new:
            self._new[medium.key] += 1
        sequence.pinned[index] = sequence.request.media_ends[index]
        return True

    def passed(self, sequence: Sequence) -> None:
        """Release the media whose every token is computed."""
        for index in [index for index, end in sequence.pinned.items() if end <= sequence.computed]:
            self._release(sequence, index)

    def release(self, sequence: Sequence) -> None:
        """Release all that the sequence holds."""
        for index in list(sequence.pinned):
            self._release(sequence, index)

    def _release(self, sequence: Sequence, index: int) -> None:
        key = sequence.request.media[index].key
        del sequence.pinned[index]
        self._features.unpin(key)
        if key in self._new:
            self._new[key] -= 1
            if not self._new[key]:
                del self._new[key]

    def encode(self, chunks: Iterable[Chunk]) -> list[tuple[Request, int]]:
        """The media that this step encodes, each once, in the order in which its chunks need them."""
        wanted: dict[bytes, tuple[Request, int]] = {}
        if self._new:
            for chunk in chunks:
                request = chunk.sequence.request
                for index in chunk.sequence.pinned:
                    key = request.media[index].key
                    if key in self._new:
                        wanted.setdefault(key, (request, index))
        return list(wanted.values())
