"""Is the file all there? Answered from markers and sizes in the file, without decoding.

The answer "no" is a suspicion (a JPEG may lack its end marker and still decode), which callers confirm by
decoding; the answer "yes" means that nothing is missing at the end, not that every byte between is sound.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

# More pieces than any honest file has; a hostile one could otherwise keep us stepping for hours.
_MOST = 100_000


def is_complete(file: BinaryIO, format: str, size: int) -> bool:
    """Whether the `size` bytes of `file`, a `format` as `media.sniff` names it, reach its announced end."""
    check = _CHECKS.get(format)
    if check is None:
        return True
    try:
        file.seek(0)
        return check(file, size)
    except (struct.error, IndexError, ValueError):
        return False  # the file ends inside a length field


def png_chunks(file: BinaryIO, size: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, offset of the data, length) of every chunk of a PNG that the file has room for."""
    at = 8
    for _ in range(_MOST):
        if at + 12 > size:
            return
        file.seek(at)
        length, name = struct.unpack(">I4s", file.read(8))
        if at + 12 + length > size:
            return
        yield name, at + 8, length
        at += 12 + length


def _jpeg(file: BinaryIO, size: int) -> bool:
    file.seek(max(0, size - 2))
    if file.read(2) == b"\xff\xd9":
        return True
    # Some cameras append data after the end marker. The thumbnail in the Exif segment has one too, so
    # segments are stepped over up to the first scan; inside scans 0xff 0xd9 cannot occur.
    at = 2
    while at + 4 <= size:
        file.seek(at)
        marker, length = struct.unpack(">HH", file.read(4))
        if marker == 0xFFFF:  # fill byte
            at += 1
            continue
        if marker >> 8 != 0xFF:
            return False
        at += 2 + length
        if marker == 0xFFDA:
            file.seek(at)
            return b"\xff\xd9" in file.read()
    return False


def _png(file: BinaryIO, size: int) -> bool:
    return any(name == b"IEND" for name, _, _ in png_chunks(file, size))


def _gif(file: BinaryIO, size: int) -> bool:
    file.seek(max(0, size - 1024))
    return file.read().rstrip(b"\x00").endswith(b"\x3b")


def _riff(file: BinaryIO, size: int) -> bool:
    file.seek(4)
    (announced,) = struct.unpack("<I", file.read(4))
    # A writer that never returned to fill the size in leaves 0; odd sizes may lack their padding byte.
    return announced + 8 <= size + 1


def _bmp(file: BinaryIO, size: int) -> bool:
    head = file.read(54)
    offset, header = struct.unpack("<II", head[10:18])
    if header == 12:
        width, height, _, bits = struct.unpack("<HHHH", head[18:26])
        return offset + (width * bits + 31) // 32 * 4 * height <= size
    width, height, _, bits, compression = struct.unpack("<iiHHI", head[18:34])
    if compression in (1, 2, 4, 5):  # run lengths, JPEG, PNG: the size is not known from the header
        return True
    return offset + (width * bits + 31) // 32 * 4 * abs(height) <= size


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, start of the content, end) of the ISO boxes between two offsets; the last may reach beyond."""
    at = start
    for _ in range(_MOST):
        if at + 8 > end:
            return
        file.seek(at)
        length, name = struct.unpack(">I4s", file.read(8))
        header = 8
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
            header = 16
        elif length == 0:
            length = end - at
        if length < header:
            return
        yield name, at + header, at + length
        at += length


def _mp4(file: BinaryIO, size: int) -> bool:
    has_index = False
    for name, _, end in _boxes(file, 0, size):
        has_index |= name in (b"moov", b"moof")
        if end > size:
            return False
    return has_index


def mp4_rotation(file: BinaryIO, size: int) -> int:
    """Degrees clockwise (0, 90, 180, 270) by which players turn the first video track of an mp4 or mov."""
    try:
        return _first_rotation(file, size)
    except struct.error:  # a damaged box; the pixels are as they are
        return 0


def _first_rotation(file: BinaryIO, size: int) -> int:
    for name, start, end in _boxes(file, 0, size):
        if name != b"moov":
            continue
        for trak, trak_start, trak_end in _boxes(file, start, min(end, size)):
            if trak == b"trak":
                matrix, is_video = _track(file, trak_start, trak_end)
                if is_video:
                    return _angle(matrix)
    return 0


def _track(file: BinaryIO, start: int, end: int) -> tuple[tuple[int, ...], bool]:
    matrix: tuple[int, ...] = (1, 0, 0, 1)
    is_video = False
    for name, inner, inner_end in _boxes(file, start, end):
        if name == b"tkhd":
            file.seek(inner)
            # Times and duration are 8 bytes wide from version 1 on; then the 3x3 matrix, row by row.
            at = inner + (52 if file.read(1) == b"\x01" else 40)
            file.seek(at)
            a, b, _, c, d = struct.unpack(">5i", file.read(20))
            matrix = (a, b, c, d)
        elif name == b"mdia":
            for box, content, _ in _boxes(file, inner, inner_end):
                if box == b"hdlr":
                    file.seek(content + 8)
                    is_video = file.read(4) == b"vide"
    return matrix, is_video


def _angle(matrix: tuple[int, ...]) -> int:
    a, b, c, d = ((value > 0) - (value < 0) for value in matrix)
    return {(0, 1, -1, 0): 90, (-1, 0, 0, -1): 180, (0, -1, 1, 0): 270}.get((a, b, c, d), 0)


def _matroska(file: BinaryIO, size: int) -> bool:
    at = 0
    for _ in range(_MOST):
        if at >= size:
            break
        file.seek(at)
        head = file.read(12)
        id_length = 9 - head[0].bit_length()
        first = head[id_length]
        size_length = 9 - first.bit_length()
        value = int.from_bytes(head[id_length : id_length + size_length], "big") & (
            (1 << 7 * size_length) - 1
        )
        if value == (1 << 7 * size_length) - 1:
            return True  # a live stream: its end is not announced
        at += id_length + size_length + value
    return at <= size


def _asf(file: BinaryIO, size: int) -> bool:
    file.seek(16)
    (header,) = struct.unpack("<Q", file.read(8))
    file.seek(0)
    content = file.read(min(header, 2**20))
    at = content.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))  # the File Properties object
    if at < 0:
        return True
    announced, flags = (
        struct.unpack_from("<Q", content, at + 40)[0],
        struct.unpack_from("<I", content, at + 88)[0],
    )
    return bool(flags & 1) or announced <= size


_CHECKS = {
    "jpg": _jpeg,
    "png": _png,
    "gif": _gif,
    "webp": _riff,
    "avi": _riff,
    "bmp": _bmp,
    "mp4": _mp4,
    "mkv": _matroska,
    "wmv": _asf,
}
