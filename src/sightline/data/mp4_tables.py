"""The tables of an mp4: how many entries FFmpeg would set up for them, before it does.

An mp4 of one kilobyte may announce a billion frames, for each of which FFmpeg makes an entry of some 40 bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, BinaryIO

from sightline.data.media import Budget

# Samples of sound and text beside the frames: a day of AAC has four million.
_SAMPLES = 1_000_000
# What an edit list may ask for beyond the usual one or two entries: entries x samples.
_EDITED = 4_000_000
# A clip in fragments of a tenth of a second has some 40,000 in half an hour.
_TABLES = 200_000


def excess_of_mp4(file: BinaryIO, budget: Budget) -> str:
    """What the tables of an mp4 or mov ask for beyond any honest one; empty where they are in order."""
    size = file.seek(0, 2)
    tracks = [_Track()]
    looked = 0
    for number, (name, body) in enumerate(_tables(file, size)):
        if name in _REFUSED:
            return _REFUSED[name]
        if name == b"trak":
            tracks.append(_Track())
        looked += tracks[-1].read(name, body)
        if number > _TABLES or looked > 4 * size:  # tables that lie inside one another
            return "too many tables"
    most = 2 * budget.max_frames + _SAMPLES
    if sum(track.samples for track in tracks) > most:
        return f"more than {most:,} samples"
    return f"more than {_EDITED:,} edits" if sum(track.edits for track in tracks) > _EDITED else ""


_REFUSED = {b"cmov": "a compressed index", b"wide": "a table with a length of 64 bits"}


class _Track:
    """What the tables between one `trak` and the next claim; FFmpeg gives them to the track that came last."""

    def __init__(self) -> None:
        self._counts = {b"stsz": 0, b"stz2": 0, b"stts": 0, b"ctts": 0, b"trun": 0, b"items": 0}
        self._entries = 0
        self._chunks = self._per_chunk = 0
        self._formats: list[bytes] = []
        self._steps: list[bool] = []  # of each stts, whether it says: one tick a sample

    @property
    def samples(self) -> int:
        """Entries that FFmpeg sets up."""
        if self._is_plain_sound:  # taken in pieces of 1,024 samples
            return self._chunks * -(-self._per_chunk // 1024)
        return max(self._counts.values())

    @property
    def edits(self) -> int:
        return self.samples * self._entries if self._entries > 2 else 0

    @property
    def _is_plain_sound(self) -> bool:
        return self._steps == [True] and len(self._formats) == 1 and self._formats[0] in _PCM

    def read(self, name: bytes, body: memoryview) -> int:
        """Take a table in; gives the bytes that were looked at."""
        if name in (b"stsz", b"stz2"):
            self._counts[name] += _number(body, 8)
        elif name == b"trun":
            self._counts[name] += _number(body, 4)
        elif name in (b"stts", b"ctts"):
            rows = _rows(body, 2)
            self._counts[name] += int(rows[:, 0].sum(dtype="u8"))
            if name == b"stts":
                self._steps.append(rows[:, 1].tolist() == [1] if len(rows) == 1 else False)
            return rows.nbytes
        elif name in (b"iloc", b"iinf"):
            # Pictures in a container of clips; only the newer versions can count beyond 65,535.
            self._counts[b"items"] += (
                _number(body, 6 if name == b"iloc" else 4) if bytes(body[:1]) > _OLD[name] else 0
            )
        elif name == b"elst":
            self._entries += _number(body, 4)
        elif name in (b"stco", b"co64"):
            self._chunks += _number(body, 4)
        elif name == b"stsc":
            rows = _rows(body, 3)
            self._per_chunk = max(self._per_chunk, int(rows[:, 1].max(initial=0)))
            return rows.nbytes
        elif name == b"stsd":
            # Two formats in one table count as none that is known.
            self._formats += [bytes(body[12:16])] * min(_number(body, 4), 2)
        return 24


_OLD = {b"iloc": b"\1", b"iinf": b"\0"}
_PCM = frozenset(b"sowt twos NONE lpcm in24 in32 fl32 fl64 ulaw alaw ipcm".split()) | {b"raw "}
_TABLE = re.compile(rb"trak|stsz|stz2|stts|ctts|stsc|stco|co64|stsd|trun|elst|cmov|iloc|iinf")


def _tables(file: BinaryIO, size: int) -> Iterator[tuple[bytes, memoryview]]:
    """(name, what follows, to the region's end) of all tables, wherever they hide but in the media data itself.

    FFmpeg looks into boxes that others step over, so names are searched for rather than boxes followed.
    """
    for start, end in _outside_media_data(file, size):
        file.seek(start)
        data = file.read(min(end - start, _LONGEST_INDEX))
        view = memoryview(data)
        for found in _TABLE.finditer(data):
            # A length of 1 says that the true one, of 64 bits, follows; no honest table is so long.
            wide = data[max(0, found.start() - 4) : found.start()] == b"\0\0\0\1"
            yield b"wide" if wide and found.group() != b"trak" else found.group(), view[found.end() :]


def _outside_media_data(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    at = start = 0
    for _ in range(_TABLES):
        if at + 8 > size:
            break
        file.seek(at)
        head = file.read(16)
        length, name = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        elif length == 0:
            length = size - at
        if length < 8:
            break
        if name == b"mdat":
            yield start, at
            start = at + length
        at += length
    if start < size:
        yield start, size


# Bytes of an index that are looked at; four hours of video have 20 MB.
_LONGEST_INDEX = 2**28


def _number(data: bytes | memoryview, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")


def _rows(body: memoryview, width: int) -> Any:
    """uint32 [rows, width] of a table whose second field is their number; those that are there."""
    import numpy as np

    count = min(_number(body, 4), max(0, len(body) - 8) // (4 * width))
    if not count:
        return np.zeros((0, width), np.uint32)
    return np.frombuffer(body, ">u4", count * width, 8).reshape(-1, width)
