"""What limit_mm_per_prompt lets through, and the largest medium that memory is measured for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.data.conversation import Conversation, Image, Message, Video
from sightline.data.media import Budget, MediaError
from sightline.data.vision import image_grid, tokens, video_grid
from sightline.data.vision_spec import _DEFAULTS, VisionSpec
from sightline.engine.inputs import Prompt
from sightline.engine.media.limits import MediaLimit, MediaLimits, check_pixels
from sightline.errors import UsageError
from sightline.models.patches import Layout

SPECS = [replace(spec, video_max_frames=24) for spec in (*_DEFAULTS.values(), VisionSpec("plain"))]


def prompt(images: int, videos: int) -> Prompt:
    return Prompt(Conversation([Message("user", [*[Image("a.png")] * images, *[Video("a.mp4")] * videos])]))


def test_both_forms_are_read() -> None:
    found = MediaLimits.parse(
        {"image": 4, "video": {"count": 1, "num_frames": 32, "width": 640, "height": 480}}
    )
    assert found == MediaLimits(MediaLimit(count=4), MediaLimit(1, 640, 480, 32))
    assert MediaLimits.parse(None) == MediaLimits()
    assert MediaLimits.parse({"image": {"width": 64, "height": 64}}).image.count is None


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        ({"audio": 1}, "limit_mm_per_prompt has 'audio'"),
        ({"image": -1}, "image must be a whole number from 0, not -1"),
        ({"image": True}, "not True"),
        ({"image": "4"}, "not '4'"),
        ({"image": {"count": 1, "num_frames": 3}}, "has 'num_frames'"),
        ({"image": {"count": 1, "width": 3}}, "width and height together"),
        ({"video": {"num_frames": 0}}, "a whole number from 1"),
    ],
)
def test_anything_else_is_refused(limit: Any, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        MediaLimits.parse(limit)


def test_counts() -> None:
    limits = MediaLimits.parse({"image": 2, "video": 0})
    limits.check(prompt(2, 0))
    with pytest.raises(UsageError, match="3 images, but limit_mm_per_prompt allows 2"):
        limits.check(prompt(3, 0))
    with pytest.raises(UsageError, match="1 videos, but limit_mm_per_prompt allows 0"):
        limits.check(prompt(0, 1))
    MediaLimits().check(prompt(99, 99))


def test_a_medium_larger_than_the_limit_is_refused_with_both_numbers() -> None:
    spec = _DEFAULTS["qwen2_vl"]
    limits = MediaLimits.parse({"image": {"count": 4, "width": 1024, "height": 768}})
    grid = image_grid(spec, 1024, 768)
    most = tokens(spec, grid)
    assert limits.largest_image_tokens(spec) == most == 37 * 27
    limits.check_size(spec, Layout("image", grid, most), "image 1 of the prompt")
    with pytest.raises(
        UsageError, match=rf"^image 2 of the prompt takes 1000 .*of image \(1024x768\) allows {most}"
    ):
        limits.check_size(spec, Layout("image", grid, 1000), "image 2 of the prompt")
    with pytest.raises(UsageError, match="pixel limit of this model"):
        MediaLimits().check_size(spec, Layout("image", grid, 99_999), "the image")


def test_no_image_of_16384_tokens_is_assumed_where_limits_forbid_it() -> None:
    spec = replace(_DEFAULTS["qwen2_vl"], max_pixels=16384 * 28 * 28)
    assert MediaLimits().largest_image_tokens(spec) == 16384
    assert MediaLimits().largest_image_tokens(replace(spec, max_pixels=1280 * 28 * 28)) == 1280
    limited = MediaLimits.parse({"image": {"count": 1, "width": 448, "height": 448}, "video": 0})
    assert limited.largest_image_tokens(spec) == 256
    assert limited.largest_video_tokens(spec) == 0
    assert MediaLimits.parse({"image": 0}).largest_image_tokens(spec) == 0
    short = MediaLimits.parse({"video": {"num_frames": 8, "width": 280, "height": 280}})
    assert short.largest_video_tokens(spec) == 4 * tokens(spec, (1, *video_grid(spec, 8, 280, 280)[1:]))


SIDES = st.one_of(st.integers(1, 400), st.integers(1, 9000))


@given(
    st.sampled_from(SPECS),
    SIDES,
    SIDES,
    st.integers(1, 24),
    st.sampled_from([None, 1, 9, 300]),
    st.booleans(),
)
@settings(deadline=None, max_examples=300)
def test_nothing_within_the_pixel_limits_exceeds_the_largest(
    spec: VisionSpec, width: int, height: int, frames: int, most: int | None, same: bool
) -> None:
    """Whatever its shape: thin ones and tiny ones are rounded up, and least and most may be the same."""
    width, height = min(width, 200 * height), min(height, 200 * width)
    if most is not None:
        spec = spec.limited(most * spec.factor**2, most * spec.factor**2 if same else None)
    limits = MediaLimits()
    assert tokens(spec, image_grid(spec, width, height)) <= limits.largest_image_tokens(spec)
    grid = video_grid(spec, -(-frames // 2) * 2, width, height)
    assert tokens(spec, grid) <= limits.largest_video_tokens(spec)


@pytest.mark.parametrize(
    ("kind", "words"), [("image", "images have 11 pixels"), ("video", "videos have 11 pixels")]
)
def test_what_a_prompt_makes_us_decode_is_bounded_by_kind(kind: str, words: str) -> None:
    budget = Budget(max_total_pixels=10, max_clip_pixels=10)
    check_pixels({"image": 10, "video": 10}, budget)
    with pytest.raises(MediaError, match=words):
        check_pixels({"image": 10, "video": 10, kind: 11}, budget)
