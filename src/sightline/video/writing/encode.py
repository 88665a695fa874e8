"""Frames into one file, with what players need to be told: the rate, and the colours' matrix and range."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.errors import SightlineError, first_line
from sightline.video.writing.formats import encoder_for

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

_BT709 = 1  # in each of FFmpeg's lists: matrix, primaries, transfer
_LIMITED = 1  # of brightness 16 to 235, which is what players expect of yuv420p


def to_bytes(frames: Tensor) -> np.ndarray:
    """Frames [F, 3, H, W] in [0, 1] as [F, H, W, 3] in uint8.

    Raises:
        SightlineError: a frame with numbers that are none.
    """
    import torch

    broken = (~torch.isfinite(frames)).flatten(1).any(dim=1).nonzero().flatten().tolist()
    if broken:
        raise SightlineError(
            f"frame {broken[0]} of {len(frames)} holds numbers that are infinite or none: the model overflowed; "
            f"generate with --dtype bf16 or fp32"
        )
    return (frames.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def encode(pictures: np.ndarray, path: Path, fps: int, quality: int | None = None) -> str:
    """Write pictures into one file, by its suffix.

    Args:
        pictures: [F, H, W, 3] in uint8, RGB; sides even, except in GIF and PNG.
        fps: pictures a second. A GIF counts in hundredths of a second; its whole length is kept.
        quality: of the encoder, crf with x264 and VP9; its default without.

    Returns:
        What encoded it, in words.

    Raises:
        OSError: it cannot be written.
        SightlineError: this build of av cannot, or a side is odd.
    """
    suffix = path.suffix.lower()
    if suffix == ".gif":
        return _gif(pictures, path, fps)
    if suffix == ".png":
        return _png(pictures, path)
    return _video(pictures, path, fps, quality)


def _video(pictures: np.ndarray, path: Path, fps: int, quality: int | None) -> str:
    import av

    encoder = encoder_for(path)
    _, height, width, _ = pictures.shape
    if width % 2 or height % 2:
        raise SightlineError(
            f"cannot write {path}: {width}x{height} has an odd side, which {encoder.name} does not take; "
            f"choose even ones, or a GIF"
        )
    settings = encoder.settings(quality)
    # The index in front: playing can begin before all is there.
    flags = {"movflags": "+faststart"} if path.suffix.lower() in (".mp4", ".m4v", ".mov") else {}
    try:
        with av.open(str(path), "w", options=flags) as container:
            stream: Any = container.add_stream(encoder.name, rate=fps, options=settings)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.time_base = stream.codec_context.time_base = Fraction(1, fps)
            _tag(stream.codec_context)
            if encoder.quality == "qscale":
                stream.codec_context.qscale = True
                stream.codec_context.global_quality = int(settings["qscale"]) * 118  # FF_QP2LAMBDA
            for frame in _frames(pictures):
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    except av.FFmpegError as error:
        if isinstance(error, OSError):
            raise
        raise SightlineError(f"cannot write {path}: {encoder.name} failed: {first_line(error)}") from error
    return f"{encoder.name} {encoder.quality} {settings[encoder.quality]}, yuv420p bt709"


def _frames(pictures: np.ndarray) -> Iterator[Any]:
    import av

    for number, picture in enumerate(pictures):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame = frame.reformat(
            format="yuv420p",
            dst_colorspace=av.video.reformatter.Colorspace.ITU709,
            src_color_range=av.video.reformatter.ColorRange.JPEG,
            dst_color_range=av.video.reformatter.ColorRange.MPEG,
        )
        frame.pts = number
        yield frame


def _tag(context: Any) -> None:
    """Say which colours these are: a player that has to guess takes BT.601 for small videos, and reds turn orange."""
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED


def _gif(pictures: np.ndarray, path: Path, fps: int) -> str:
    from PIL import Image

    plain = [Image.fromarray(picture) for picture in pictures]
    # Each frame's best colours, then spread as points: without that, smooth colours become steps.
    images = [
        image.quantize(palette=image.quantize(256), dither=Image.Dither.FLOYDSTEINBERG) for image in plain
    ]
    # Shown until the hundredth of a second nearest to the frame's end, so that rounding does not add up.
    ends = [round(100 * (number + 1) / fps) for number in range(len(images))]
    lengths = [10 * (end - begin) for begin, end in zip([0, *ends], ends, strict=False)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=lengths, loop=0, disposal=1)
    return "gif, 256 colours a frame"


def _png(pictures: np.ndarray, path: Path) -> str:
    from PIL import Image

    Image.fromarray(pictures[0]).save(path)
    return "png"
