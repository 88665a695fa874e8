"""How a prompt's own settings for its media are read."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from clips import clip
from PIL import Image as Pillow

from sightline.data.conversation import Image, Video
from sightline.data.vision_spec import VisionSpec
from sightline.engine.inputs import read_messages, read_prompt
from sightline.errors import UsageError
from sightline.models.patches import open_medium


def media_of(kind: str, medium: Any, **options: Any) -> list[Any]:
    given = {"prompt": "x", "multi_modal_data": {kind: medium}, "mm_processor_kwargs": options}
    return list(read_prompt(given).media.parts())


def test_pixel_limits_and_rates_of_a_prompt() -> None:
    (image,) = media_of("image", b"x", min_pixels=10, max_pixels=np.int64(20), fps=1)
    assert image == Image(b"x", min_pixels=10, max_pixels=20)
    (video,) = media_of("video", b"x", fps=1, max_frames=8, max_pixels=20, do_sample_frames=False)
    assert video == Video(b"x", fps=1.0, max_frames=8, max_pixels=20)
    first, second = media_of("video", [b"x", b"y"], fps=[1.0, 4.0])
    assert (first.fps, second.fps) == (1.0, 4.0)


@pytest.mark.parametrize("count", [2, 6, 24])
def test_num_frames_takes_so_many_of_any_file(count: int) -> None:
    data = clip(frames=24, fps=8)
    (video,) = media_of("video", data, num_frames=count)
    assert video.fps == math.inf
    frames = open_medium(VisionSpec("plain"), video)
    assert len(frames.images) == count
    assert frames.sampled_fps == pytest.approx(count / 3)


def test_num_frames_thins_out_frames_that_are_given() -> None:
    pictures = [Pillow.new("RGB", (60, 60))] * 8
    (video,) = media_of("video", [pictures], num_frames=4, fps=2.0)
    assert (video.fps, video.max_frames) == (2.0, 4)


@pytest.mark.parametrize(
    ("kind", "options", "text"),
    [
        ("image", {"max_pixels": "many"}, "max_pixels in mm_processor_kwargs must be a whole number"),
        ("image", {"min_pixels": 0}, "min_pixels .* not 0"),
        ("video", {"max_frames": True}, "max_frames .* not True"),
        ("video", {"num_frames": 2.5}, "num_frames .* not 2.5"),
        ("video", {"fps": 0}, "fps .* positive number, not 0"),
        ("video", {"fps": math.inf}, "fps .* positive number"),
        ("video", {"fps": 2, "num_frames": 4}, "both fps and num_frames"),
    ],
)
def test_settings_that_are_none_are_refused(kind: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        media_of(kind, b"x", **options)


def test_a_message_s_setting_is_named_by_its_place() -> None:
    part = {"type": "image", "image": b"x", "max_pixels": -3}
    with pytest.raises(UsageError, match=r"max_pixels in messages\[0\].content\[0\] must be"):
        read_messages([{"role": "user", "content": [part]}])
