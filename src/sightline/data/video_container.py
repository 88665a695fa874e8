"""A video file through PyAV: opened from our own handle, its header, its frames in order.

ffmpeg never sees a path: it reads from a handle that we opened, and only with the demuxers of real video
files, because playlists and concat scripts could name other files.
"""

from __future__ import annotations

import traceback
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


class Clip:
    """An open file and its first video stream.

    A decoder and its threads end with the last reference to its stream; there is no call for that. So this is the only
    holder: an error that is kept, with all that it came through, keeps a clip that is closed.
    """

    def __init__(self, container: Any, stream: Any) -> None:
        self.container = container
        self.stream = stream

    def close(self) -> None:
        """End the decoder and close the file."""
        container, self.container, self.stream = self.container, None, None
        if container is not None:
            container.close()


def decoded(source: Source, clip: Clip, header: VideoHeader, budget: Budget) -> Iterator[tuple[Any, float]]:
    """Every frame in showing order with its time in seconds from the first."""
    import av

    clip.stream.thread_type = "AUTO"
    # Streams may change their size on the way; the decoder refuses what the header would not have got away with.
    clip.stream.codec_context.options = {"max_pixels": str(budget.max_pixels)}
    start = None
    try:
        for number, frame in enumerate(clip.container.decode(clip.stream)):
            check_time(source, budget)
            time = frame.time if frame.pts is not None else None
            if start is None:
                start = time
            yield frame, time - start if time is not None and start is not None else number / header.fps
    except (av.FFmpegError, ValueError, MemoryError) as error:
        raise cut_off(source) from error


@contextmanager
def container_of(source: Source, budget: Budget) -> Iterator[Clip]:
    """The clip, open for as long as the block runs; its decoder ends with the block, however that ends.

    Raises:
        MediaError: no video, or none that is read.
    """
    with opened(bytes_of(source), budget) as file:
        found = sniff(file.read(64))
        if found not in _DEMUXERS:
            raise _not_opened(source, found)
        check_claims(source, file, found, budget)
        clip = _clip_of(source, file, found, budget)
        try:
            _check_stream(source, clip)
            yield clip
        except BaseException as error:
            _clear(error)
            raise
        finally:
            clip.close()


def _clear(error: BaseException) -> None:
    """Let the functions that an error came through forget their variables: a decoded frame keeps its decoder."""
    pending: list[BaseException | None] = [error]
    while pending:
        one = pending.pop()
        if one is not None:
            traceback.clear_frames(one.__traceback__)
            pending.append(one.__cause__)


def _clip_of(source: Source, file: Any, found: str, budget: Budget) -> Clip:
    import av

    try:
        container = av.open(file, metadata_errors="replace", options=_options(found, budget))
    except (av.FFmpegError, ValueError, UnicodeError) as error:
        raise _not_opened(source, found) from error
    return Clip(container, next(iter(container.streams.video), None))


def _check_stream(source: Source, clip: Clip) -> None:
    if clip.stream is None or clip.stream.codec_context is None:
        raise MediaError(
            f"{describe(source)} has no picture track we can decode; use {VIDEO_FORMATS}", "unsupported"
        )
    codec = clip.stream.codec_context.codec.name
    if codec not in _CODECS:
        raise MediaError(
            f"{describe(source)} is encoded in {codec}, which is not decoded; convert it to H.264",
            "unsupported",
        )


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


def header_of(source: Source, clip: Clip, budget: Budget) -> VideoHeader:
    width, height = clip.stream.codec_context.width, clip.stream.codec_context.height
    if width < 1 or height < 1:
        raise cut_off(source)
    frames = clip.stream.frames or _count_packets(source, clip, budget)
    if frames < 1:
        raise MediaError(f"{describe(source)} has no frames; replace the file", "truncated")
    seconds = _seconds(clip)
    rate = clip.stream.average_rate or clip.stream.guessed_rate
    fps = float(rate) if rate else (frames / seconds if seconds else 25.0)
    header = VideoHeader(width, height, fps, frames, seconds or frames / fps)
    _check_budget(source, header, budget)
    return _rotated(source, header, clip, budget)


def _rotated(source: Source, header: VideoHeader, clip: Clip, budget: Budget) -> VideoHeader:
    if "mp4" not in clip.container.format.name:
        return header
    with opened(bytes_of(source), budget) as file:
        sideways = mp4_rotation(file, file.seek(0, 2)) % 180 == 90
    return replace(header, width=header.height, height=header.width) if sideways else header


def _count_packets(source: Source, clip: Clip, budget: Budget) -> int:
    import av

    count = 0
    try:
        for packet in clip.container.demux(clip.stream):
            check_time(source, budget)
            count += packet.size > 0
            if count > budget.max_frames:
                break
        clip.container.seek(0)
    except av.FFmpegError as error:
        raise cut_off(source) from error
    return count


def _seconds(clip: Clip) -> float:
    if clip.stream.duration and clip.stream.time_base:
        return float(clip.stream.duration * Fraction(clip.stream.time_base))
    return clip.container.duration / 1e6 if clip.container.duration else 0.0


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
