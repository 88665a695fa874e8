"""Videos: which frames are taken, when they are, and every way in which a file can be wrong."""

from __future__ import annotations

import gc
import io
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import CONTAINERS, clip, damaged, level, number_of, sound
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from sightline.data.conversation import Video
from sightline.data.media import Budget, MediaError
from sightline.data.videos import (
    VideoHeader,
    load_video,
    plan_video,
    sample_count,
    sample_indices,
    verify_video,
    video_header,
)


def header(frames: int, fps: float) -> VideoHeader:
    return VideoHeader(64, 48, fps, frames, frames / fps)


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container(tmp_path: Path, container: str) -> None:
    data = clip(container)
    path = tmp_path / f"clip.{container}"
    path.write_bytes(data)
    found = video_header(str(path))
    assert (found.width, found.height, found.frames) == (64, 48, 24)
    assert found.fps == pytest.approx(8)
    assert found.duration == pytest.approx(3, abs=0.15)
    assert verify_video(data, decode=True) == found
    frames = load_video(data, fps=2)
    # 3 s at 2 a second; evenly from the first to the last of 24 frames.
    assert [number_of(picture) for picture in frames.images] == [0, 5, 9, 14, 18, 23]
    assert frames.timestamps == pytest.approx([0, 5 / 8, 9 / 8, 14 / 8, 18 / 8, 23 / 8], abs=0.002)
    assert frames.sampled_fps == pytest.approx(2)
    assert {(picture.mode, picture.size) for picture in frames.images} == {("RGB", (64, 48))}
    assert (frames.total_frames, frames.source_fps) == (24, pytest.approx(8))


def test_uneven_frames_keep_their_own_times() -> None:
    times = [0, 1, 2, 3, 20, 21, 22, 23]
    frames = load_video(clip("mkv", frames=8, times=times), fps=1000)
    assert [number_of(picture) for picture in frames.images] == list(range(8))
    assert frames.timestamps == pytest.approx([time / 8 for time in times], abs=0.002)


def test_odd_rates() -> None:
    rate = Fraction(24000, 1001)
    frames = load_video(clip(frames=24, fps=rate), fps=float(rate))
    assert frames.timestamps == pytest.approx([number * 1001 / 24000 for number in range(24)], abs=0.001)


@pytest.mark.parametrize(
    ("frames", "rate", "options", "count"),
    [
        (240, 24.0, {}, 20),
        (250, 24.0, {}, 20),
        (24, 24.0, {}, 4),  # 2 by the rate, but at least 4
        (3, 24.0, {}, 2),  # never more than there are, and even
        (1, 24.0, {}, 2),  # a single frame is taken twice
        (24000, 24.0, {}, 768),
        (24000, 24.0, {"max_frames": 99}, 98),
        (24000, 24.0, {"max_frames": 1}, 2),
        (240, 24.0, {"fps": 1.1}, 10),
        (240, 24.0, {"fps": 100.0}, 240),
        (241, 24.0, {"fps": 100.0}, 240),
        (240, 24.0, {"min_frames": 31}, 32),
    ],
)
def test_sample_count(frames: int, rate: float, options: dict, count: int) -> None:
    assert sample_count(header(frames, rate), **options) == count


@given(
    st.integers(1, 10**5), st.floats(0.1, 240), st.floats(0.01, 100), st.integers(1, 2000), st.integers(1, 50)
)
def test_sample_count_and_indices_hold_their_promises(
    frames: int, rate: float, fps: float, most: int, least: int
) -> None:
    count = sample_count(header(frames, rate), fps=fps, max_frames=most, min_frames=least)
    assert count % 2 == 0
    assert 2 <= count <= max(2, min(most, frames))
    indices = sample_indices(frames, count)
    assert len(indices) == count
    assert indices == sorted(indices)
    assert (indices[0], indices[-1]) == (0, frames - 1)
    if frames >= 2:
        assert len(set(indices)) == count


@pytest.mark.parametrize("total", [1, 2, 3, 5])
def test_very_short_clips(total: int) -> None:
    frames = load_video(clip(frames=total))
    assert len(frames.images) == max(2, total // 2 * 2)
    assert number_of(frames.images[-1]) == total - 1


def test_settings_of_the_video_go_before_the_arguments() -> None:
    data = clip()
    assert len(load_video(Video(data, fps=4.0), fps=1).images) == 12
    assert len(load_video(Video(data, max_frames=5), fps=100, max_frames=20).images) == 4
    assert len(load_video(Video(data), fps=100, budget=Budget(max_frames=1000), max_frames=6).images) == 6


@pytest.mark.parametrize("source", [clip(), clip("avi"), clip("webm", frames=7)])
@pytest.mark.parametrize("fps", [0.5, 2, 30])
def test_plan_is_what_load_does(source: bytes, fps: float) -> None:
    plan, frames = plan_video(source, fps=fps), load_video(source, fps=fps)
    assert plan.timestamps == pytest.approx(frames.timestamps, abs=0.002)
    assert plan.sampled_fps == frames.sampled_fps
    assert (plan.width, plan.height) == frames.images[0].size


@pytest.mark.parametrize("rotation", [90, 180, 270])
@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_rotation_is_applied_to_header_and_frames(rotation: int, container: str) -> None:
    if not hasattr(__import__("av").VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write rotated files")
    data = clip(container, rotation=rotation)
    size = (64, 48) if rotation == 180 else (48, 64)
    found = video_header(data)
    assert (found.width, found.height) == size
    assert load_video(data).images[0].size == size


def test_rotation_turns_the_right_way() -> None:
    import av

    if not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write rotated files")
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:, :32] = 255  # the left half is white
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.set_display_rotation(90)  # anticlockwise: left comes to the bottom
        for _ in range(4):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    picture = np.asarray(load_video(buffer.getvalue()).images[0].convert("L"))
    assert picture[40:, :].mean() > 200
    assert picture[:24, :].mean() < 50


def test_transform_is_applied_to_each_frame() -> None:
    frames = load_video(clip(), transform=lambda picture: picture.resize((8, 6)))
    assert {picture.size for picture in frames.images} == {(8, 6)}


def _pictures(count: int, size: tuple[int, int] = (20, 10)) -> tuple[Pillow.Image, ...]:
    return tuple(Pillow.new("RGB", size, (level(number),) * 3) for number in range(count))


def test_frames_given_as_pictures() -> None:
    frames = load_video(Video(_pictures(5), fps=4.0))
    assert [number_of(picture) for picture in frames.images] == [0, 1, 2, 3, 4, 4]
    assert frames.timestamps == [0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert frames.sampled_fps == 4.0
    thinned = load_video(Video(_pictures(8), fps=4.0), max_frames=4)
    assert [number_of(picture) for picture in thinned.images] == [0, 2, 5, 7]
    assert thinned.sampled_fps == 2.0
    for source, most in ((_pictures(5), 768), (_pictures(8), 4)):
        plan, frames = plan_video(Video(source), max_frames=most), load_video(Video(source), max_frames=most)
        assert (plan.timestamps, plan.sampled_fps) == (frames.timestamps, frames.sampled_fps)
    found = verify_video(Video(_pictures(6), fps=3.0))
    assert found == VideoHeader(20, 10, 3.0, 6, 2.0)


def test_frames_of_unequal_size_are_refused() -> None:
    source = (*_pictures(2), Pillow.new("RGB", (21, 10)))
    for work in (load_video, verify_video):
        with pytest.raises(MediaError, match="21x10 but the first frame of its video 20x10"):
            work(Video(source))


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_truncated_files_are_found(container: str, share: float) -> None:
    whole = clip(container, frames=28, size=(160, 120))
    with pytest.raises(MediaError) as caught:
        verify_video(whole[: int(len(whole) * share)])
    assert "truncated or damaged" in str(caught.value) or "has no " in str(caught.value)


def test_truncated_mp4_with_its_index_in_front(tmp_path: Path) -> None:
    import av

    buffer, path = io.BytesIO(clip(frames=28, size=(160, 120))), str(tmp_path / "front.mp4")
    with av.open(buffer) as source, av.open(path, "w", options={"movflags": "faststart"}) as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    data = Path(path).read_bytes()
    assert data.find(b"moov") < data.find(b"mdat")
    cut = data[: int(len(data) * 0.7)]
    assert video_header(cut).frames == 28
    for work in (verify_video, load_video):
        with pytest.raises(MediaError, match="truncated"):
            work(cut)


@pytest.mark.parametrize(
    ("data", "words", "kind"),
    [
        (b"", "is empty", "truncated"),
        (b"not a video at all" * 20, "not a video in a supported format", "unsupported"),
        (b"\x00\x00\x00\x18ftypisom" + bytes(400), "truncated or damaged", "truncated"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not a video in a supported format", "unsupported"),
        (b"ffconcat version 1.0\nfile '/etc/passwd'\n", "not a video in a supported format", "unsupported"),
        (sound(), "no picture track", "unsupported"),
        (clip(frames=0), "", "truncated"),
    ],
)
def test_what_is_not_a_video(data: bytes, words: str, kind: str) -> None:
    for work in (video_header, load_video, verify_video):
        with pytest.raises(MediaError) as caught:
            work(data)
        assert words in str(caught.value)
        if words:
            assert caught.value.kind == kind


def test_picture_given_as_video_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="as a video, use"):
        buffer = io.BytesIO()
        Pillow.new("RGB", (4, 4)).save(buffer, "PNG")
        video_header(buffer.getvalue())
    with pytest.raises(MediaError, match="there is no file") as caught:
        load_video(str(tmp_path / "none.mp4"))
    assert caught.value.kind == "missing"
    with pytest.raises(MediaError, match="is not a video"):
        load_video(Pillow.new("RGB", (4, 4)))


@pytest.mark.parametrize(
    "budget", [Budget(max_pixels=1000), Budget(max_frames=10), Budget(max_seconds=2), Budget(max_bytes=100)]
)
def test_budget_is_checked_before_decoding(budget: Budget) -> None:
    with pytest.raises(MediaError, match="more than the") as caught:
        video_header(clip(), budget)
    assert caught.value.kind == "too-large"


def test_kept_frames_are_bounded_unless_scaled_down() -> None:
    budget = Budget(max_kept_pixels=64 * 48 * 5)
    with pytest.raises(MediaError, match="lower fps or max_frames"):
        load_video(clip(), budget=budget)
    assert len(load_video(clip(), fps=1, budget=budget).images) == 4
    assert load_video(clip(), budget=budget, transform=lambda picture: picture.resize((8, 8))).images


_WHOLE = {container: clip(container, frames=6) for container in CONTAINERS}


@given(st.sampled_from(list(CONTAINERS)), st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_raise_only_media_errors(container: str, data: st.DataObject) -> None:
    bytes_ = bytearray(_WHOLE[container])
    for _ in range(data.draw(st.integers(1, 8))):
        bytes_[data.draw(st.integers(0, len(bytes_) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(bytes_[: data.draw(st.one_of(st.just(len(bytes_)), st.integers(1, len(bytes_))))])
    budget = Budget(max_pixels=10**6, max_frames=10**4)
    for work in (verify_video, load_video):
        try:
            work(cut, budget=budget)
        except MediaError:
            continue


def test_real_videos(shared_data: Path) -> None:
    for path in sorted([*shared_data.rglob("*.mp4"), *shared_data.rglob("*.avi")]):
        found = verify_video(str(path), decode=True)
        frames = load_video(str(path), fps=1)
        assert len(frames.images) == sample_count(found, fps=1)
        assert frames.images[0].size == (found.width, found.height)
        assert frames.timestamps == pytest.approx(plan_video(str(path), fps=1).timestamps, abs=0.01)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads as Linux does")
def test_a_decoder_ends_with_its_error_though_that_is_kept() -> None:
    before, errors = len(list(Path("/proc/self/task").iterdir())), []
    gc.disable()
    try:
        for seed in range(20):
            try:
                load_video(damaged(seed))
            except MediaError as error:
                errors.append(error)
        threads = len(list(Path("/proc/self/task").iterdir()))
    finally:
        gc.enable()
    assert len(errors) > 10
    assert all("truncated or damaged" in str(error) for error in errors)
    assert threads <= before + 2
