"""The features of images and clips, kept so that a medium that was seen is not encoded again.

One owner of all feature tensors, bounded in bytes. The scheduler asks before a step whether a medium's
features are there or can be given room (`has`, `reserve`, `pin`); the runner brings and takes them (`put`,
`get`). Encoding is by far the dearest part of a prompt, and yet a miss is only that much time: what is not
pinned may go at any moment, the least recently used first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class _Entry:
    rows: int
    pins: int
    features: list[Tensor] | None = None  # None: there is room for them, and they are being computed


class EncoderCache:
    """Features by medium key; see the module. Used by the engine's thread alone.

    Args:
        capacity: bytes of features to hold. A single medium that takes more is served all the same: it has
            the cache for itself while it is pinned, and goes when it is not.
        bytes_per_row: of one vision token: width of the language model x levels (1, and one for each deepstack
            level) x bytes of an element. So a medium's room is known before it is encoded.
    """

    def __init__(self, capacity: int, bytes_per_row: int) -> None:
        if capacity < 0 or bytes_per_row < 1:
            raise ValueError(
                f"an encoder cache of {capacity} bytes with {bytes_per_row} a row makes no sense"
            )
        self.capacity = capacity
        self.bytes_per_row = bytes_per_row
        self.bytes = 0
        """Held or given room, in bytes."""
        self.hits = 0
        """Media that were wanted and found (`pin`)."""
        self.misses = 0
        """Media that had to be encoded (`reserve`)."""
        self.evictions = 0
        self._entries: dict[bytes, _Entry] = {}
        # Keys that may go, the least recently used first: never a pinned one, so that eviction never searches.
        self._idle: OrderedDict[bytes, None] = OrderedDict()
        self._idle_bytes = 0

    def has(self, key: bytes) -> bool:
        """Whether the features are there; room alone does not count."""
        entry = self._entries.get(key)
        return entry is not None and entry.features is not None

    def reserve(self, key: bytes, rows: int) -> bool:
        """Make room for the features of a medium of `rows` vision tokens, and pin it.

        Features that are there, or have room already, are only pinned. False where what is pinned leaves no
        room; nothing has changed then. A medium beyond the whole capacity gets its room when nothing is pinned.
        """
        if key in self._entries:
            self.pin(key)
            return True
        wanted = rows * self.bytes_per_row
        pinned = self.bytes - self._idle_bytes
        if pinned and pinned + wanted > self.capacity:
            return False
        self._evict(self.capacity - wanted)
        self._entries[key] = _Entry(rows, pins=1)
        self.bytes += wanted
        self.misses += 1
        return True

    def put(self, key: bytes, features: Sequence[Tensor]) -> None:
        """Hand over what `reserve` made room for; the cache owns the tensors from now on.

        Args:
            features: the embeddings, then the deepstack levels if the family has them; each [rows, width].

        Raises:
            ValueError: no room was reserved, or they are not of the size that was.
        """
        entry = self._entries.get(key)
        if entry is None:
            raise ValueError("features of a medium that no room was reserved for")
        size = sum(feature.nbytes for feature in features)
        if size != entry.rows * self.bytes_per_row or any(len(feature) != entry.rows for feature in features):
            raise ValueError(
                f"features of {[tuple(feature.shape) for feature in features]} ({size} bytes) for a medium of "
                f"{entry.rows} vision tokens with {self.bytes_per_row} bytes each"
            )
        entry.features = [_own(feature) for feature in features]

    def get(self, key: bytes) -> list[Tensor]:
        """The features of a medium, as they were put; not to be written to.

        Raises:
            KeyError: they are not there.
        """
        features = self._entries[key].features
        if features is None:
            raise KeyError(key)
        if key in self._idle:
            self._idle.move_to_end(key)
        return features

    def pin(self, key: bytes) -> None:
        """Keep the medium until `unpin` was called as often as `pin` and `reserve`.

        Raises:
            KeyError: it is not there.
        """
        entry = self._entries[key]
        self.hits += entry.features is not None
        if entry.pins == 0:
            del self._idle[key]
            self._idle_bytes -= self._size(entry)
        entry.pins += 1

    def unpin(self, key: bytes) -> None:
        """Take one pin back. Without any, room that never got features is given back at once.

        Raises:
            KeyError: it is not there. ValueError: it is not pinned.
        """
        entry = self._entries[key]
        if entry.pins == 0:
            raise ValueError("a medium that is not pinned cannot be unpinned")
        entry.pins -= 1
        if entry.pins:
            return
        if entry.features is None:
            del self._entries[key]
            self.bytes -= self._size(entry)
        else:
            self._idle[key] = None
            self._idle_bytes += self._size(entry)
            self._evict(self.capacity)

    def _evict(self, most: int) -> None:
        """Drop idle media until at most `most` bytes are held, or nothing idle is left."""
        while self._idle and self.bytes > most:
            key, _ = self._idle.popitem(last=False)
            size = self._size(self._entries.pop(key))
            self._idle_bytes -= size
            self.bytes -= size
            self.evictions += 1

    def _size(self, entry: _Entry) -> int:
        return entry.rows * self.bytes_per_row

    def check_integrity(self) -> None:
        """Raises AssertionError with a sentence where the books do not balance."""
        size = sum(self._size(entry) for entry in self._entries.values())
        assert self.bytes == size, f"the cache counts {self.bytes} bytes but its media take {size}"
        size = sum(self._size(self._entries[key]) for key in self._idle)
        assert self._idle_bytes == size, f"{self._idle_bytes} bytes are counted idle, but {size} are"
        idle = {key for key, entry in self._entries.items() if not entry.pins}
        assert idle == set(self._idle), (
            f"{len(idle)} media have no pin, but {len(self._idle)} are listed as idle"
        )
        waiting = [key for key in idle if self._entries[key].features is None]
        assert not waiting, f"{len(waiting)} media without a pin hold room for features that nobody computes"
        alone = len(self._entries) == 1 and not idle
        assert self.bytes <= self.capacity or alone, (
            f"{len(self._entries)} media take {self.bytes} bytes, more than the {self.capacity} allowed"
        )


def _own(feature: Tensor) -> Tensor:
    """A slice of a batch would keep the features of the whole batch in memory, uncounted."""
    return feature if feature.untyped_storage().nbytes() == feature.nbytes else feature.clone()
