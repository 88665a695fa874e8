"""Small video files whose every frame says its own number, made on the spot."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np

# Container -> codecs that PyAV's wheels always have.
CONTAINERS = {
    "mp4": "mpeg4",
    "mov": "mpeg4",
    "avi": "mpeg4",
    "mkv": "mpeg4",
    "webm": "libvpx",
    "asf": "msmpeg4v3",
}
STEP = 8  # grey levels between neighbouring frames


def level(number: int) -> int:
    """The grey of frame `number`, 0 to 28; far enough apart to survive the codec."""
    return 16 + STEP * number


def number_of(picture: Any) -> int:
    """Which frame a decoded picture is."""
    return round((float(np.asarray(picture).mean()) - 16) / STEP)


def clip(
    container: str = "mp4",
    frames: int = 24,
    fps: Fraction | int = 8,
    size: tuple[int, int] = (64, 48),
    times: Sequence[int] | None = None,
    rotation: int = 0,
) -> bytes:
    """A video; `times` in units of 1/fps place its frames unevenly."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format={"mkv": "matroska"}.get(container, container)) as output:
        stream = output.add_stream(CONTAINERS[container], rate=fps)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), level(number), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = times[number] if times is not None else number
            frame.time_base = 1 / Fraction(fps)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def damaged(seed: int) -> bytes:
    """An mp4 whose first frames are whole, and whose later ones stop a decoder that has begun."""
    data = bytearray(clip(size=(320, 240)))
    first, last = data.find(b"mdat") + 4, data.find(b"moov") - 8
    generator = random.Random(seed)
    for _ in range(300):
        data[generator.randrange(first + (last - first) // 4, last)] = generator.randrange(256)
    return bytes(data)


def sound() -> bytes:
    """An mp4 without a picture track."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()
