"""A video file through PyAV: opened from our own handle, its header, its frames in order.

ffmpeg never sees a path: it reads from a handle that we opened, and only with the demuxers of real video
files, because playlists and concat scripts could name other files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from sightline.data.claims import check_claims
from sightline.data.conversation import Source
from sightline.data.media import (
    VIDEO_FORMATS,
    VIDEO_KINDS,
    Budget,
    MediaError,
    check_time,
    describe,
    opened,
    sniff,
)
from sightline.data.structure import mp4_rotation

_PROTOCOLS = "none"  # those by which a demuxer may open something else
# One reader for each kind, lest a file that was looked at as one is read as another, whose tables nobody looked at.
_DEMUXERS = {"mp4": "mov,mp4,m4a,3gp,3g2,mj2", "avi": "avi", "wmv": "asf", "mkv": "matroska,webm"}
# Decoders of the pictures that cameras, browsers and editors write. FFmpeg has hundreds, for old games too, which few
# people look after; sound is never decoded.
_CODECS = (
    *("h264", "hevc", "libdav1d", "libaom-av1", "av1", "vp9", "libvpx-vp9", "vp8", "libvpx", "theora"),
    *("mpeg4", "mpeg2video", "mpeg1video", "h263", "flv", "msmpeg4v1", "msmpeg4v2", "msmpeg4"),
    *("wmv1", "wmv2", "wmv3", "vc1", "mjpeg", "prores", "dnxhd", "dvvideo", "ffv1", "huffyuv", "ffvhuff"),
    *("utvideo", "rawvideo", "png", "svq3", "cinepak"),
)


@dataclass(frozen=True)
class VideoHeader:
    """Size in pixels as shown (rotation applied), `fps` frames a second on average, `duration` in seconds."""

    width: int
    height: int
    fps: float
    frames: int
    duration: float


def decoded(
    source: Source, container: Any, stream: Any, header: VideoHeader, budget: Budget
) -> Iterator[tuple[Any, float]]:
    """Every frame in showing order with its time in seconds from the first."""
    import av

    stream.thread_type = "AUTO"
    # Streams may change their size on the way; the decoder refuses what the header would not have got away with.
    stream.codec_context.options = {"max_pixels": str(budget.max_pixels)}
    start = None
    try:
        for number, frame in enumerate(container.decode(stream)):
            check_time(source, budget)
            time = frame.time if frame.pts is not None else None
            if start is None:
                start = time
            yield frame, time - start if time is not None and start is not None else number / header.fps
    except (av.FFmpegError, ValueError, MemoryError) as error:
        raise cut_off(source) from error


@contextmanager
def container_of(source: Source, budget: Budget) -> Iterator[tuple[Any, Any]]:
    import av

    with opened(bytes_of(source), budget) as file:
        found = sniff(file.read(64))
        if found not in _DEMUXERS:
            raise _not_opened(source, found)
        check_claims(source, file, found, budget)
        try:
            container = av.open(file, metadata_errors="replace", options=_options(found, budget))
        except (av.FFmpegError, ValueError, UnicodeError) as error:
            raise _not_opened(source, found) from error
        with container:
            stream = next(iter(container.streams.video), None)
            if stream is None or stream.codec_context is None:
                raise MediaError(
                    f"{describe(source)} has no picture track we can decode; use {VIDEO_FORMATS}",
                    "unsupported",
                )
            if stream.codec_context.codec.name not in _CODECS:
                raise MediaError(
                    f"{describe(source)} is encoded in {stream.codec_context.codec.name}, which is not decoded; "
                    "convert it to H.264",
                    "unsupported",
                )
            yield container, stream


def _options(kind: str, budget: Budget) -> dict[str, str]:
    return {
        "format_whitelist": _DEMUXERS[kind],
        "protocol_whitelist": _PROTOCOLS,
        "codec_whitelist": ",".join(_CODECS),
        # FFmpeg decodes a frame to learn what the header leaves open. Somewhat too large ones are let through
        # here, so that `header_of` can say how large they are.
        "max_pixels": str(max(4 * budget.max_pixels, 2**22)),
    }


def bytes_of(source: Source | tuple[Source, ...]) -> str | bytes:
    if isinstance(source, (str, bytes)):
        return source
    raise MediaError(f"{describe(source)} is not a video; give a path or a list of frames", "unsupported")  # type: ignore[arg-type]


def _not_opened(source: Source, found: str | None) -> MediaError:
    if found in VIDEO_KINDS:
        return cut_off(source)
    what = f"is a {found}" if found else "is not a video in a supported format"
    return MediaError(f"{describe(source)} {what}; as a video, use {VIDEO_FORMATS}", "unsupported")


def cut_off(source: Source) -> MediaError:
    return MediaError(f"{describe(source)} is truncated or damaged; replace the file", "truncated")


def header_of(source: Source, container: Any, budget: Budget) -> VideoHeader:
    stream = container.streams.video[0]
    width, height = stream.codec_context.width, stream.codec_context.height
    if width < 1 or height < 1:
        raise cut_off(source)
    frames = stream.frames or _count_packets(source, container, stream, budget)
    if frames < 1:
        raise MediaError(f"{describe(source)} has no frames; replace the file", "truncated")
    seconds = _seconds(container, stream)
    rate = stream.average_rate or stream.guessed_rate
    fps = float(rate) if rate else (frames / seconds if seconds else 25.0)
    header = VideoHeader(width, height, fps, frames, seconds or frames / fps)
    _check_budget(source, header, budget)
    return _rotated(source, header, container, budget)


def _rotated(source: Source, header: VideoHeader, container: Any, budget: Budget) -> VideoHeader:
    if "mp4" not in container.format.name:
        return header
    with opened(bytes_of(source), budget) as file:
        sideways = mp4_rotation(file, file.seek(0, 2)) % 180 == 90
    return replace(header, width=header.height, height=header.width) if sideways else header


def _count_packets(source: Source, container: Any, stream: Any, budget: Budget) -> int:
    import av

    count = 0
    try:
        for packet in container.demux(stream):
            check_time(source, budget)
            count += packet.size > 0
            if count > budget.max_frames:
                break
        container.seek(0)
    except av.FFmpegError as error:
        raise cut_off(source) from error
    return count


def _seconds(container: Any, stream: Any) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * Fraction(stream.time_base))
    return container.duration / 1e6 if container.duration else 0.0


def _check_budget(source: Source, header: VideoHeader, budget: Budget) -> None:
    limits = (
        (header.width * header.height, budget.max_pixels, "pixels a frame"),
        (header.frames, budget.max_frames, "frames"),
        (header.duration, budget.max_seconds, "seconds"),
    )
    for value, limit, unit in limits:
        if value > limit:
            raise MediaError(
                f"{describe(source)} has {value:,.0f} {unit}, more than the "
                f"{limit:,.0f} allowed; shorten or scale it",
                "too-large",
            )
