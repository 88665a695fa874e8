"""What media may cost."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Budget:
    """What media may cost. Checked against sizes that headers state, before anything is decoded.

    Of one medium: `max_pixels` is width x height of a picture or of a frame; 89,478,485 is where Pillow begins
    to suspect a decompression bomb. `max_kept_pixels` bounds the frames of a video in memory at once, 3 bytes a
    pixel.

    Of all media of a prompt that have to be decoded: `max_total_pixels` those of its pictures together,
    `max_clip_pixels` those of its clips, every stored frame counted, because all are decoded. Decoders take from a
    second to a minute for a billion pixels, so `max_decode_seconds` bounds that too; it is looked at between
    two frames or pictures, by whoever has `started` the budget.

    `files` says whether a source may name a file of this machine at all. A server fetches what requests name by its
    own rules and gives the engine bytes, so that there it may not.
    """

    max_bytes: int = 4 * 2**30
    max_pixels: int = 89_478_485
    max_frames: int = 1_000_000
    max_seconds: float = 6 * 3600.0
    max_kept_pixels: int = 2**31
    max_total_pixels: int = 2**40
    max_clip_pixels: int = 2**50
    max_decode_seconds: float = math.inf
    files: bool = True
    until: float = math.inf
    """time.perf_counter() at which decoding ends; of a budget that was started."""

    def started(self) -> Budget:
        """The same for one prompt, whose time begins now."""
        return replace(self, until=time.perf_counter() + self.max_decode_seconds)

    @property
    def is_over(self) -> bool:
        return time.perf_counter() > self.until


DEFAULT = Budget()
