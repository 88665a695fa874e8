"""Clips: the reference's processor needs torchvision, so its definition is written out here once more."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sightline.data.conversation import Video
from sightline.data.vision import patch_video, resize_frame, smart_resize, tokens, video_grid, video_size_for
from sightline.data.vision_spec import VisionSpec
from sightline.errors import SightlineError

HALF = (0.5, 0.5, 0.5)
QWEN2 = VisionSpec("qwen2_5_vl", video_total_pixels=90_316_800)
QWEN3 = VisionSpec(
    "qwen3_vl",
    patch_size=16,
    image_mean=HALF,
    image_std=HALF,
    video_min_pixels=4096,
    video_max_pixels=25_165_824,
    clip_limits=True,
)
SMALL2 = replace(QWEN2, video_min_pixels=56 * 56, video_max_pixels=90 * 90)
SMALL3 = replace(QWEN3, video_min_pixels=4 * 32 * 32, video_max_pixels=30 * 32 * 32)
smalls = pytest.mark.parametrize("spec", [SMALL2, SMALL3], ids=lambda spec: spec.model_type)


def noise(frames: int, width: int, height: int) -> list[PIL.Image.Image]:
    values = np.random.default_rng(frames).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
    return [PIL.Image.fromarray(frame) for frame in values]


def slow_patches(spec: VisionSpec, frames: list[PIL.Image.Image], height: int, width: int) -> np.ndarray:
    """Patches one value at a time, by what each index means; resizing is torch's, as in torchvision."""
    pixels = [
        torch.nn.functional.interpolate(
            torch.from_numpy(np.array(frame)).permute(2, 0, 1)[None],
            size=(height, width),
            mode="bicubic",
            antialias=True,
        )[0]
        for frame in frames
    ]
    while len(pixels) % spec.temporal_patch_size:
        pixels.append(pixels[-1])
    # The reference's fused form: the byte, less the mean in bytes, over the deviation in bytes.
    mean = torch.tensor(spec.image_mean) * (1.0 / spec.rescale_factor)
    std = torch.tensor(spec.image_std) * (1.0 / spec.rescale_factor)
    values = [((p.float() - mean[:, None, None]) / std[:, None, None]).numpy() for p in pixels]
    size, merge = spec.patch_size, spec.merge_size
    rows = []
    for first in range(0, len(values), spec.temporal_patch_size):
        for top in range(0, height, size * merge):
            for left in range(0, width, size * merge):
                for row in range(merge):
                    for column in range(merge):
                        y, x = top + row * size, left + column * size
                        group = values[first : first + spec.temporal_patch_size]
                        rows.append(
                            [frame[c, y : y + size, x : x + size] for c in range(3) for frame in group]
                        )
    return np.array(rows, np.float32).reshape(len(rows), -1)


@smalls
@settings(max_examples=20, deadline=None)
@given(frames=st.integers(1, 7), width=st.integers(10, 130), height=st.integers(10, 130))
def test_patches_from_first_principles(spec: VisionSpec, frames: int, width: int, height: int) -> None:
    clip = noise(frames, width, height)
    patches, grid = patch_video(spec, clip)
    assert grid == video_grid(spec, frames, width, height)
    assert grid[0] == math.ceil(frames / 2)
    assert len(patches) == grid[0] * grid[1] * grid[2] == 4 * tokens(spec, grid)
    size = video_size_for(spec, frames, width, height)
    np.testing.assert_array_equal(patches, slow_patches(spec, clip, *size))


@smalls
def test_odd_clip_repeats_its_last_frame(spec: VisionSpec) -> None:
    clip = noise(3, 64, 64)
    patches, grid = patch_video(spec, clip)
    halves = patches.reshape(grid[0], -1, 3, 2, spec.patch_size**2)
    np.testing.assert_array_equal(halves[-1, :, :, 0], halves[-1, :, :, 1])
    assert not np.array_equal(halves[0, :, :, 0], halves[0, :, :, 1])


def test_a_frame_of_the_right_size_is_not_resampled() -> None:
    frame = noise(1, 56, 56)[0]
    patches, grid = patch_video(replace(SMALL2, image_mean=(0.0,) * 3, image_std=(1.0,) * 3), [frame, frame])
    assert grid == (1, 4, 4)
    expected = np.asarray(frame)[:14, :14, 0].astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(patches[0, :196].reshape(14, 14), expected)


@smalls
def test_frames_may_be_resized_beforehand(spec: VisionSpec) -> None:
    clip = noise(3, 131, 77)
    size = video_size_for(spec, 3, 131, 77)
    ready = [resize_frame(spec, frame, *size) for frame in clip]
    assert ready[0].size == (size[1], size[0])
    patches, grid = patch_video(spec, ready, size=size)
    expected, expected_grid = patch_video(spec, clip)
    assert grid == expected_grid
    np.testing.assert_array_equal(patches, expected)


def qwen2_size(frames: int, height: int, width: int, spec: VisionSpec) -> tuple[int, int]:
    """The reference's per-frame limit with `cap_pixels_per_frame`."""
    total = int(128_000 * 28 * 28 * 0.9)
    most = max(min(spec.video_max_pixels, total * 2 // frames), int(spec.video_min_pixels * 1.05))
    return smart_resize(height, width, 28, spec.video_min_pixels, most)


def qwen3_size(frames: int, height: int, width: int, least: int, most: int) -> tuple[int, int]:
    """The reference's clip-wise resize, written from its definition."""
    if height < 32 or width < 32:
        scale = max(32 / height, 32 / width)
        height, width = int(height * scale), int(width * scale)
    h, w, t = round(height / 32) * 32, round(width / 32) * 32, round(frames / 2) * 2
    if t * h * w > most:
        beta = math.sqrt(frames * height * width / most)
        return max(32, math.floor(height / beta / 32) * 32), max(32, math.floor(width / beta / 32) * 32)
    if t * h * w < least:
        beta = math.sqrt(least / (frames * height * width))
        return math.ceil(height * beta / 32) * 32, math.ceil(width * beta / 32) * 32
    return h, w


@given(st.integers(2, 1000), st.integers(1, 4000), st.integers(1, 4000))
def test_qwen2_sizes(frames: int, height: int, width: int) -> None:
    assume(max(height, width) <= 200 * min(height, width))
    assert video_size_for(QWEN2, frames, width, height) == qwen2_size(frames, height, width, QWEN2)


def test_qwen2_least_share() -> None:
    """However tight the total, a frame may have 1.05 times the least pixels."""
    tight = replace(QWEN2, video_total_pixels=1000)
    most = int(128 * 28 * 28 * 1.05)
    for width in range(300, 1500, 13):
        expected = smart_resize(480, width, 28, 128 * 28 * 28, most)
        assert video_size_for(tight, 8, width, 480) == expected


def test_qwen3_rounds_odd_clips_to_even() -> None:
    """5 frames count as 4, for Python rounds halves to even: 28 of at most 30 tokens, not 42."""
    assert video_size_for(SMALL3, 5, 7 * 32, 32) == (32, 7 * 32)


@given(st.integers(2, 1000), st.integers(32, 4000), st.integers(32, 4000), st.sampled_from([QWEN3, SMALL3]))
def test_qwen3_sizes(frames: int, height: int, width: int, spec: VisionSpec) -> None:
    expected = qwen3_size(frames, height, width, spec.video_min_pixels, spec.video_max_pixels)
    assert video_size_for(spec, frames, width, height) == expected


@given(st.integers(2, 1000), st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([768, 196, 16]))
def test_qwen3_sizes_with_a_limit_on_frames(frames: int, height: int, width: int, most_tokens: int) -> None:
    assume(max(height, width) <= 190 * min(height, width))
    spec = replace(QWEN3, video_frame_pixels=most_tokens * 32 * 32)
    frame = max(min(most_tokens * 32 * 32, 25_165_824 // frames), int(4096 * 1.05))
    expected = qwen3_size(frames, height, width, 4096, frame * frames)
    assert video_size_for(spec, frames, width, height) == expected


@pytest.mark.parametrize("frames", [2, 16, 60, 300])
def test_the_total_changes_no_ordinary_clip(frames: int) -> None:
    unbounded = replace(QWEN2, video_total_pixels=None)
    size = video_size_for(QWEN2, frames, 1920, 1080)
    assert size == video_size_for(unbounded, frames, 1920, 1080)


def test_the_total_bounds_long_clips() -> None:
    assert tokens(QWEN2, video_grid(QWEN2, 768, 1920, 1080)) <= 128_000 * 0.9
    unbounded = replace(QWEN2, video_total_pixels=None)
    assert tokens(QWEN2, video_grid(unbounded, 768, 1920, 1080)) > 200_000


def test_the_total_never_raises_a_limit() -> None:
    """The reference's floor may lift a low limit above itself; a user's limit holds here."""
    tight = replace(QWEN2, video_min_pixels=50_176, video_max_pixels=50_176)
    height, width = video_size_for(tight, 100, 1000, 1000)
    assert height * width <= 50_176


def test_qwen3_short_clips_are_sharp_unless_frames_are_limited() -> None:
    assert video_size_for(QWEN3, 4, 1920, 1080) == (1088, 1920)
    height, width = video_size_for(replace(QWEN3, video_frame_pixels=768 * 1024), 4, 1920, 1080)
    assert height * width <= 768 * 1024


def test_a_single_frame_is_a_clip_of_two() -> None:
    assert video_size_for(QWEN3, 1, 640, 480) == video_size_for(QWEN3, 2, 640, 480) == (480, 640)
    for spec in (SMALL2, SMALL3):
        patches, grid = patch_video(spec, noise(1, 64, 64))
        assert grid[0] == 1
        assert np.isfinite(patches).all()


@pytest.mark.parametrize("spec", [QWEN2, QWEN3], ids=lambda spec: spec.model_type)
def test_a_clips_own_limits_count_frames(spec: VisionSpec) -> None:
    video = Video("clip.mp4", max_pixels=200_704, min_pixels=100_352)
    height, width = video_size_for(spec, 10, 1920, 1080, video)
    assert 100_352 <= height * width <= 200_704
    height, width = video_size_for(spec, 10, 64, 48, video)
    assert 100_352 <= height * width <= 200_704
    assert video_grid(spec, 10, 1920, 1080, video)[0] == 5


@pytest.mark.parametrize("spec", [QWEN2, QWEN3], ids=lambda spec: spec.model_type)
def test_refused_shapes(spec: VisionSpec) -> None:
    assert video_grid(spec, 4, 200, 1)[0] == 2
    with pytest.raises(SightlineError, match=r"of a 201x1 picture is above 200"):
        video_grid(spec, 4, 201, 1)
    with pytest.raises(SightlineError, match="no pixels"):
        video_grid(spec, 4, 0, 10)
