"""Tables of tags, as TIFF and Exif have them: how much reading them would take.

Pillow makes an object of every value. A fraction takes it two microseconds and 300 bytes, so that an Exif block of
60 MB, which no reader needs, would keep it busy for half a minute.
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO

# Honest tables have some dozens of entries, and a handful of fractions.
_ENTRIES, _FRACTIONS = 4_096, 10_000
# Two for each tile: 40 million pixels in tiles of 16x16, and a palette.
_NUMBERS = 1_000_000
# Bytes of a value by type; those without one are passed over, as Pillow does.
_WIDTHS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_FRACTION, _BYTE = (5, 10), 1
# Exif, GPS and interoperability: the tables that Pillow reads besides the first.
_POINTERS = (0x8769, 0x8825, 0xA005)
# JPEG has room for 64 KB in a segment. Pillow puts several together, in quadratic time.
MOST_EXIF = 2**20  # bytes


def excess_of_exif(data: bytes) -> str:
    """What an Exif block, as files hold it, asks for beyond any honest one; empty where it is in order."""
    if len(data) > MOST_EXIF:
        return f"Exif of more than {MOST_EXIF:,} bytes"
    start = 6 if data.startswith(b"Exif\0\0") else 0
    try:
        return excess_of_tags(io.BytesIO(data[start:]))
    except (struct.error, IndexError):
        return ""  # it ends too early, which says nothing about the pixels


def excess_of_tags(file: BinaryIO) -> str:
    """As `excess_of_exif`, of a whole TIFF.

    Raises:
        struct.error: it ends too early.
    """
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    wide = head[2] == 43
    first = struct.unpack_from(order + ("Q" if wide else "L"), head, 8 if wide else 4)[0]
    places, counts = [first], {"entries": 0, "fractions": 0, "numbers": 0}
    for number, place in enumerate(places):
        try:
            found = _read(file, place, order, wide, counts)
        except struct.error:  # nor can Pillow read this one, but perhaps the next
            continue
        if number == 0:
            places += found
        for name, most in (("entries", _ENTRIES), ("fractions", _FRACTIONS), ("numbers", _NUMBERS)):
            if counts[name] > most:
                return f"more than {most:,} {name} in its tables"
    return ""


def _read(file: BinaryIO, place: int, order: str, wide: bool, counts: dict[str, int]) -> list[int]:
    """Add up one table, as far as it is there, and give the places of the tables below it."""
    row = struct.Struct(order + ("HHQ8s" if wide else "HHL4s"))
    if place >= 2**63:
        return []
    file.seek(place)
    count = struct.unpack(order + ("Q" if wide else "H"), file.read(8 if wide else 2))[0]
    data = file.read(row.size * min(count, _ENTRIES + 1))
    size = file.seek(0, 2)
    counts["entries"] += len(data) // row.size  # those that are there, for damaged ones may claim any number
    below = []
    for tag, kind, values, value in row.iter_unpack(data[: len(data) // row.size * row.size]):
        width = _WIDTHS.get(kind, 0)
        if values * width <= size and width > _BYTE:
            counts["fractions" if kind in _FRACTION else "numbers"] += values
        if tag in _POINTERS:
            below.append(struct.unpack_from(order + ("Q" if wide else "L"), value)[0])
    return below
