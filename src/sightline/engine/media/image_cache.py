"""Patches of pictures and clips that were seen lately, so that a repeated one is neither decoded nor cut again.

They lie in host memory, bounded in bytes, and serve all preprocessing threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from sightline.models.patches import Patched


class ImageCache:
    """Least recently used out first; any thread may ask.

    What comes out is shared: nobody writes to it. Media larger than the whole cache pass through it unkept.

    Args:
        capacity: bytes of patches to keep; 0 keeps none.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 0:
            raise ValueError(f"an image cache of {capacity} bytes makes no sense")
        self.capacity = capacity
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self._kept: OrderedDict[bytes, Patched] = OrderedDict()
        self._coming: dict[bytes, Future[Patched]] = {}
        self._lock = threading.Lock()

    def peek(self, key: bytes) -> Patched | None:
        """What is kept under `key`; nothing is counted, and its turn to go stays."""
        with self._lock:
            return self._kept.get(key)

    def get(self, key: bytes, make: Callable[[], Patched]) -> Patched:
        """The patches of `key`: kept, or made by `make`, or made by another thread this moment.

        Whatever `make` raises is raised; threads that waited for it then try by themselves, so that each
        gets an error about its own source.
        """
        while True:
            with self._lock:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    self.hits += 1
                    return self._kept[key]
                coming = self._coming.get(key)
                if coming is None:
                    mine = self._coming[key] = Future()
                    self.misses += 1
                    break
            if coming.exception() is None:
                with self._lock:
                    self.hits += 1
                return coming.result()
        return self._make(key, make, mine)

    def _make(self, key: bytes, make: Callable[[], Patched], mine: Future[Patched]) -> Patched:
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._coming[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._coming[key]
            self._keep(key, value)
        mine.set_result(value)
        return value

    def _keep(self, key: bytes, value: Patched) -> None:
        if value.nbytes > self.capacity:
            return
        self._kept[key] = value
        self.bytes += value.nbytes
        while self.bytes > self.capacity:
            _, oldest = self._kept.popitem(last=False)
            self.bytes -= oldest.nbytes
            self.evictions += 1

    def check_integrity(self) -> None:
        """Raises AssertionError with a sentence where the books do not balance."""
        with self._lock:
            size = sum(value.nbytes for value in self._kept.values())
            assert self.bytes == size, f"the cache counts {self.bytes} bytes but its patches take {size}"
            assert size <= self.capacity, f"{size} bytes are kept, more than the {self.capacity} allowed"
            both = self._kept.keys() & self._coming.keys()
            assert not both, f"{len(both)} media are kept and made again at once"
