"""What is in a written file, decoded again."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from sightline.errors import SightlineError, UsageError
from sightline.video.writing import formats
from sightline.video.writing.encode import encode, to_bytes
from sightline.video.writing.formats import Encoder, check_suffix


def clip(frames: int = 9, height: int = 48, width: int = 64) -> torch.Tensor:
    """[F, 3, H, W]: colours that run smoothly over the picture and move."""
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    x = torch.linspace(0, 1, width)[None].expand(height, width)
    return torch.stack(
        [torch.stack([x, y, 0.5 + 0.5 * torch.sin(6 * x + number / 3)]) for number in range(frames)]
    )


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return 10 * math.log10(255**2 / ((one.astype(float) - other) ** 2).mean())


@pytest.mark.parametrize(
    ("suffix", "least"), [(".mp4", 40), (".m4v", 40), (".mov", 40), (".mkv", 40), (".webm", 40), (".gif", 27)]
)
def test_frames_come_back_from_the_file(tmp_path: Path, suffix: str, least: float) -> None:
    # 42 dB is what yuv420p in 8 bits holds of these: half the colours' resolution, 219 steps of brightness.
    pictures = to_bytes(clip(height=96, width=128))
    path = tmp_path / f"clip{suffix}"
    encode(pictures, path, 16)
    back = decoded(path)
    assert back.shape == pictures.shape
    assert psnr(back, pictures) > least


def test_an_mp4_says_its_rate_its_colours_and_can_be_played_from_the_first_byte(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    assert encode(to_bytes(clip()), path, 23) == "libx264 crf 14, yuv420p bt709"
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert (stream.average_rate, stream.frames) == (Fraction(23), 9)
        assert [frame.pts * frame.time_base for frame in frames] == [Fraction(n, 23) for n in range(9)]
        context = stream.codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc) == (1, 1, 1)
        assert (context.color_range, context.pix_fmt) == (1, "yuv420p")
    start = path.read_bytes()
    assert start.index(b"moov") < start.index(b"mdat")


@pytest.mark.parametrize("colour", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (0, 0, 0), (0.8, 0.4, 0.2)])
def test_a_plain_colour_stays_that_colour(tmp_path: Path, colour: tuple[float, float, float]) -> None:
    frames = torch.tensor(colour).view(1, 3, 1, 1).expand(5, 3, 32, 32)
    path = tmp_path / "plain.mp4"
    encode(to_bytes(frames), path, 16)
    assert np.abs(decoded(path).astype(int) - to_bytes(frames)).max() <= 4


def test_a_lower_crf_is_nearer_and_larger(tmp_path: Path) -> None:
    noisy = to_bytes((0.5 + 0.1 * torch.randn(9, 1, 48, 64)).expand(9, 3, 48, 64).clamp(0, 1))
    near, far = tmp_path / "near.mp4", tmp_path / "far.mp4"
    encode(noisy, near, 16, quality=5)
    encode(noisy, far, 16, quality=40)
    assert near.stat().st_size > 2 * far.stat().st_size
    assert psnr(decoded(near), noisy) > psnr(decoded(far), noisy) + 3
    with pytest.raises(
        UsageError, match=r"crf 52 is not one of libx264; take 0 \(nearest\) to 51 \(smallest\)"
    ):
        encode(noisy, near, 16, quality=52)


def test_without_x264_it_is_mpeg4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = Encoder("no-such-x264", "crf")
    monkeypatch.setitem(formats._ENCODERS, ".mp4", (missing, formats._MPEG4))
    path = tmp_path / "clip.mp4"
    assert encode(to_bytes(clip()), path, 16) == "mpeg4 qscale 2, yuv420p bt709"
    assert psnr(decoded(path), to_bytes(clip())) > 34
    monkeypatch.setitem(formats._ENCODERS, ".mp4", (missing,))
    with pytest.raises(SightlineError, match=r"this build of av has no no-such-x264; run: pip install"):
        encode(to_bytes(clip()), path, 16)


@pytest.mark.parametrize("fps", [7, 16, 24, 60])
def test_a_gif_lasts_as_long_as_the_video(tmp_path: Path, fps: int) -> None:
    path = tmp_path / "clip.gif"
    encode(to_bytes(clip(frames=13)), path, fps)
    with Image.open(path) as image:
        assert image.n_frames == 13
        lengths = []
        for number in range(13):
            image.seek(number)
            lengths.append(image.info["duration"])
    assert sum(lengths) == 10 * round(1300 / fps)
    assert max(lengths) - min(lengths) <= 10


def test_one_frame_is_a_picture_without_loss(tmp_path: Path) -> None:
    pictures = to_bytes(clip(frames=1))
    encode(pictures, tmp_path / "one.png", 16)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "one.png")), pictures[0])


def test_bytes_are_rounded_and_kept_in_range() -> None:
    frames = torch.tensor([-0.2, 0.0, 0.5, 1.0, 1.3, 2 / 255, 2.4 / 255]).view(1, 1, 1, 7).expand(1, 3, 2, 7)
    assert to_bytes(frames)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 2, 2]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_frames_are_named(value: float) -> None:
    frames = clip()
    frames[3, 1, 5, 5] = value
    with pytest.raises(
        SightlineError, match=r"frame 3 of 9 holds numbers that are infinite or none.*--dtype bf16"
    ):
        to_bytes(frames)


def test_odd_sides_are_refused(tmp_path: Path) -> None:
    pictures = to_bytes(clip(height=49))
    with pytest.raises(SightlineError, match=r"64x49 has an odd side"):
        encode(pictures, tmp_path / "odd.mp4", 16)
    encode(pictures, tmp_path / "odd.gif", 16)


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [
        ("cat", None, r"cat has no suffix of a video; name it cat.mp4 \(or .mov, .mkv, .webm, .gif, .png\)"),
        ("cat.avi", None, r"cat.avi has no suffix of a video; name it cat.mp4"),
        ("cat.png", 5, r"cat.png is one picture and the video has 5 frames; name it cat.mp4"),
    ],
)
def test_other_suffixes_are_refused(name: str, frames: int | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_suffix(Path(name), frames)
    check_suffix(Path("cat.MP4"), frames)
