"""Files that cost far more than their size: found by their structure, before a decoder believes them.

Decoders check width and height, and little else. A JPEG may pass over its pixels a hundred thousand times, an mp4
may announce a billion frames (`sightline.data.mp4_tables`), and a reader written in Python steps through every one
of ten million empty pieces. No honest file comes near the limits here.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

from sightline.data.media import Budget, MediaError, describe
from sightline.data.mp4_tables import excess_of_mp4
from sightline.data.tag_tables import MOST_EXIF, excess_of_exif, excess_of_tags

if TYPE_CHECKING:
    from sightline.data.conversation import Source

# JPEG: a progressive photo has some ten scans, and up to 255 segments of each kind of metadata. Fifty scans take three
# times as long as ten.
_SCANS, _SEGMENTS = 50, 5_000
# PNG: pieces of 8 KiB are usual, so this is half a gigabyte.
_CHUNKS = 65_536
# GIF: blocks of a comment or of an application, 255 bytes each, before the first picture.
_BLOCKS = 20_000
# Run lengths of a BMP are read in Python, byte by byte.
_RUNS = 4 * 2**20


def check_claims(
    source: Source, file: BinaryIO, kind: str | None, budget: Budget, *, pixels: bool = False
) -> None:
    """Look through `file`, a `kind` as `media.sniff` names it, and leave it at its start.

    Args:
        pixels: whether the pixels of a picture are wanted, not its header alone: then all of it is read.

    Raises:
        MediaError: it asks for more work or memory than any honest file of its kind.
    """
    look = _jpeg_scans if pixels and kind == "jpg" else _LOOKS.get(kind or "")
    try:
        excess = look(file, budget) if look is not None else ""
    except (struct.error, IndexError):
        excess = ""  # a picture that ends too early, as its decoder will say
    file.seek(0)
    _refuse(source, excess)


def check_exif(source: Source, exif: object) -> None:
    """Look through the Exif block of an opened picture before it is read.

    Raises:
        MediaError: as `check_claims`.
    """
    if isinstance(exif, bytes):
        _refuse(source, excess_of_exif(exif))


def _refuse(source: Source, excess: str) -> None:
    if excess:
        raise MediaError(
            f"{describe(source)} is built to take far more than its size ({excess}); save it again",
            "too-large",
        )


def _jpeg(file: BinaryIO, budget: Budget) -> str:
    """What stands before the first scan, read as Pillow reads it: byte by byte where there is no marker."""
    at, exif = 2, b""
    for _ in range(_SEGMENTS):
        file.seek(at)
        head = file.read(4)
        if len(head) < 4 or head[:2] == b"\xff\xda":
            return excess_of_exif(exif)
        if head[0] != 0xFF or head[1] == 0xFF:
            at += 1
            continue
        length = 0 if head[1] in _BARE else max(2, head[2] << 8 | head[3])
        at += 2 + length
        if head[1] == 0xE1 and len(exif) <= MOST_EXIF:
            segment = file.read(length - 2)
            exif += segment[6:] if segment.startswith(b"Exif\0\0") else b""
    return f"more than {_SEGMENTS} segments"


# Markers that no length follows.
_BARE = frozenset({0, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})


def _jpeg_scans(file: BinaryIO, budget: Budget) -> str:
    file.seek(0)
    data = file.read()
    scans, at = 0, 2
    for _ in range(_SEGMENTS):
        found = _SEGMENT.search(data, at)
        marker = data[found.end() - 1] if found else 0xD9
        if found is None or marker == 0xD9:
            return ""
        (length,) = struct.unpack_from(">H", data, found.end())
        at = found.end() + max(length, 2)
        scans += marker == 0xDA
        if scans > _SCANS:
            return f"more than {_SCANS} scans"
    return f"more than {_SEGMENTS} segments"


# The next marker that a length follows; in a scan, 0xff stands before 0 (a pixel byte) and restart markers too.
_SEGMENT = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")


def _png(file: BinaryIO, budget: Budget) -> str:
    at = 8
    for _ in range(_CHUNKS):
        file.seek(at)
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return ""
        at += 12 + int.from_bytes(head[:4], "big")
    return f"more than {_CHUNKS} chunks"


def _gif(file: BinaryIO, budget: Budget) -> str:
    file.seek(10)
    flags = file.read(3)[0]
    file.seek(13 + (3 << (flags & 7) + 1 if flags & 0x80 else 0))
    inside = False
    for _ in range(_BLOCKS):
        byte = file.read(1)
        if byte == b"" or (not inside and byte in (b",", b";")):
            return ""
        if inside:
            inside = byte != b"\0"
            file.seek(byte[0], 1)
        elif byte == b"!":
            inside = True
            file.seek(1, 1)
    return f"more than {_BLOCKS} blocks"


def _tiff(file: BinaryIO, budget: Budget) -> str:
    return excess_of_tags(file)


def _webp(file: BinaryIO, budget: Budget) -> str:
    file.seek(12)
    head = file.read(18)
    if head[:4] != b"VP8X":
        return ""  # one frame, which is what is decoded
    width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (12, 15))
    return f"a canvas of {width}x{height} pixels" if width * height > budget.max_pixels else ""


def _bmp(file: BinaryIO, budget: Budget) -> str:
    size = file.seek(0, 2)
    file.seek(14)
    head = file.read(20)
    header, compression = struct.unpack_from("<I", head)[0], struct.unpack_from("<I", head, 16)[0]
    return f"run lengths of {size:,} bytes" if header >= 40 and compression in (1, 2) and size > _RUNS else ""


_LOOKS: dict[str, Callable[[BinaryIO, Budget], str]] = {
    "jpg": _jpeg,
    "png": _png,
    "gif": _gif,
    "webp": _webp,
    "bmp": _bmp,
    "tiff": _tiff,
    "mp4": excess_of_mp4,
}
