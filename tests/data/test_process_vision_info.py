"""process_vision_info: what goes in, what comes out, as users of qwen-vl-utils know it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from clips import clip, level
from PIL import Image as Pillow

from sightline import process_vision_info
from sightline.data.media import MediaError, to_data_url
from sightline.errors import UsageError


def ask(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "a photo.png"
    Pillow.new("RGB", (300, 168), (10, 20, 30)).save(path)
    return path


def test_every_kind_of_image_source(photo: Path) -> None:
    buffer = io.BytesIO(photo.read_bytes())
    parts = [
        {"type": "image", "image": str(photo)},
        {"type": "image", "image": f"file://{str(photo).replace(' ', '%20')}"},
        {"type": "image", "image": to_data_url(buffer.getvalue())},
        {"type": "image", "image": Pillow.open(buffer)},
        {"type": "image_url", "image_url": str(photo)},
        {"type": "image_url", "image_url": {"url": str(photo)}},
        {"image": str(photo)},
    ]
    images, videos = process_vision_info(ask(*parts))
    assert videos is None
    assert [(picture.mode, picture.size) for picture in images] == [("RGB", (308, 168))] * 7
    assert images[0].getpixel((5, 5)) == (10, 20, 30)


def test_text_only_and_string_content() -> None:
    assert process_vision_info([{"role": "user", "content": "hi"}]) == (None, None)
    assert process_vision_info([], True) == (None, None, {"do_sample_frames": False, "fps": []})


def test_list_of_conversations(photo: Path) -> None:
    part = {"type": "image", "image": str(photo)}
    images, _ = process_vision_info([ask(part), ask(part, part)])
    assert len(images) == 3


@pytest.mark.parametrize(
    ("limits", "size"),
    [
        ({}, (308, 168)),
        ({"max_pixels": 112 * 112}, (140, 56)),
        ({"min_pixels": 448 * 448}, (616, 336)),
        ({"resized_height": 280, "resized_width": 420}, (420, 280)),
        ({"resized_height": 290, "resized_width": 410}, (420, 280)),
    ],
)
def test_limits(photo: Path, limits: dict[str, int], size: tuple[int, int]) -> None:
    images, _ = process_vision_info(ask({"type": "image", "image": str(photo), **limits}))
    assert images[0].size == size


def test_max_pixels_variable_and_patch_size(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = {"type": "image", "image": str(photo)}
    images, _ = process_vision_info(ask(part), image_patch_size=16)
    assert images[0].size == (288, 160)
    monkeypatch.setenv("MAX_PIXELS", str(112 * 112))
    assert process_vision_info(ask(part))[0][0].size == (140, 56)
    part["max_pixels"] = 10**6  # the picture's own limit goes before
    assert process_vision_info(ask(part))[0][0].size == (308, 168)


def test_video_tensor_and_rate() -> None:
    part = {"type": "video", "video": to_data_url(clip(), "video/mp4"), "fps": 2.0}
    _, videos, kwargs = process_vision_info(ask(part), return_video_kwargs=True)
    assert kwargs == {"do_sample_frames": False, "fps": [pytest.approx(2.0)]}
    (video,) = videos
    assert video.dtype == torch.float32
    # 64x48 grows to the least pixels of a frame: 128 tokens of 28x28.
    assert video.shape == (6, 3, 280, 392)
    means = video.mean(dim=(1, 2, 3))
    assert means.tolist() == pytest.approx([level(n) for n in (0, 5, 9, 14, 18, 23)], abs=3)


def test_video_metadata() -> None:
    part = {"type": "video", "video": to_data_url(clip(), "video/mp4"), "nframes": 5}
    _, videos, kwargs = process_vision_info(ask(part), True, True)
    assert kwargs == {"do_sample_frames": False}
    tensor, metadata = videos[0]
    assert len(tensor) == 4
    assert metadata["frames_indices"] == [0, 8, 15, 23]
    assert (metadata["fps"], metadata["total_num_frames"]) == (8.0, 24)


def test_frames_as_video(photo: Path) -> None:
    part = {"type": "video", "video": [str(photo)] * 3, "sample_fps": 4.0}
    _, videos, kwargs = process_vision_info(ask(part), True)
    assert videos[0].shape[0] == 4
    assert kwargs["fps"] == [4.0]


def test_total_pixels_are_shared_by_the_frames() -> None:
    source = to_data_url(clip(frames=28, size=(640, 480)), "video/mp4")
    part = {
        "type": "video",
        "video": source,
        "fps": 8,
        "total_pixels": 28 * 28 * 128 * 28,
        "min_pixels": 16 * 28 * 28,
    }
    video = process_vision_info(ask(part))[1][0]
    assert len(video) == 28
    # Two frames share a temporal patch, so each may have twice its part of the total.
    assert video.shape[2] * video.shape[3] <= 28 * 28 * 256
    assert video.shape[2] * video.shape[3] > 28 * 28 * 200


@pytest.mark.parametrize(
    ("part", "words", "error"),
    [
        ({"type": "image", "image": "https://x/a.png"}, "web address", MediaError),
        ({"type": "video", "video": ["http://x/a.png"]}, "web address", MediaError),
        ({"type": "image", "image": "/none.png"}, "there is no file", MediaError),
        ({"type": "image"}, "names no image", UsageError),
        (
            {"type": "image", "image": Pillow.new("RGB", (9, 9)), "max_pixels": -1},
            "max_pixels is -1",
            UsageError,
        ),
        ({"type": "video", "video": "/v.mp4", "fps": 0}, "fps is 0", UsageError),
        ({"type": "video", "video": "/v.mp4", "fps": 1, "nframes": 4}, "both fps and nframes", UsageError),
    ],
)
def test_mistakes(part: dict[str, Any], words: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=words):
        process_vision_info(ask(part))


def test_messages_of_the_wrong_form() -> None:
    with pytest.raises(UsageError, match="give a list"):
        process_vision_info({"role": "user"})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a message is a str"):
        process_vision_info(["hi"])
