"""Images and videos of messages: the forms they come in, and the limits a client may set."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from asking import about, data_url, post

from sightline.data.conversation import Image, Text, Video
from sightline.data.vision_spec import VisionSpec
from sightline.server.errors import RequestError
from sightline.server.openai.parts import PartReader
from sightline.server.run import Address

SPEC = VisionSpec(
    "qwen2_5_vl", max_pixels=10_000, min_pixels=400, video_max_pixels=5_000, video_max_frames=64
)
URL = "data:image/png;base64,AAAA"


def read(part: Any, processor: Any = None, loading: Any = None, *, fetches: bool = True) -> Any:
    return PartReader.of(SPEC, fetches, processor, loading).read(part, "here")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": URL}},
        {"type": "image_url", "image_url": URL},
        {"type": "image", "image": URL},
        {"type": "input_image", "image_url": URL},
        {"type": "image_url", "image_url": {"url": URL, "detail": "high"}, "uuid": "x"},
    ],
)
def test_forms_of_a_picture(part: Any) -> None:
    assert read(part) == Image(URL)


def test_forms_of_a_clip_and_of_a_text() -> None:
    assert read({"type": "video_url", "video_url": {"url": URL}}) == Video(URL)
    assert read({"type": "video", "video": [URL, URL], "fps": 2}) == Video((URL, URL), fps=2.0)
    assert read({"type": "text", "text": "a"}) == Text("a")
    assert read("a") == Text("a")
    assert read({"type": "refusal", "refusal": "no"}) == Text("no")


@pytest.mark.parametrize("url", ["https://example.org/a.png", "HTTP://example.org/a", "file:///a/b.png"])
def test_addresses_are_passed_on_where_the_server_fetches(url: str) -> None:
    assert read({"type": "image_url", "image_url": {"url": url}}) == Image(url)
    with pytest.raises(RequestError, match="must be a data: URL"):
        read({"type": "image_url", "image_url": {"url": url}}, fetches=False)


@pytest.mark.parametrize("url", ["/etc/hosts", "a.png", "ftp://example.org/a", "", " data:,", None, 3, ["a"]])
@pytest.mark.parametrize("fetches", [False, True])
def test_nothing_else_is_a_source(url: Any, fetches: bool) -> None:
    for part in ({"type": "image_url", "image_url": url}, {"type": "image_url", "image_url": {"url": url}}):
        with pytest.raises(RequestError) as refused:
            read(part, fetches=fetches)
        assert refused.value.body["error"]["param"] == "here.image_url"


@pytest.mark.parametrize(
    ("part", "processor", "least", "most"),
    [
        ({"max_pixels": 2_000}, None, None, 2_000),
        ({"max_pixels": 10**9}, None, None, 10_000),
        ({"min_pixels": 10**9}, None, 10_000, None),
        ({"min_pixels": 500, "max_pixels": 600}, None, 500, 600),
        ({}, {"max_pixels": 3_000}, None, 3_000),
        ({"max_pixels": 2_000}, {"max_pixels": 3_000}, None, 2_000),
        ({}, {"size": {"shortest_edge": 450, "longest_edge": 4_000}}, 450, 4_000),
        ({}, {"do_resize": True}, None, None),
    ],
)
def test_pixel_limits_are_lowered_never_raised(part: Any, processor: Any, least: Any, most: Any) -> None:
    found = read({"type": "image_url", "image_url": URL, **part}, processor)
    assert (found.min_pixels, found.max_pixels) == (least, most)


def test_low_detail_is_a_picture_of_512_by_512() -> None:
    part = {"type": "image_url", "image_url": {"url": URL, "detail": "low"}}
    large = PartReader.of(replace(SPEC, max_pixels=10**7), True, None, None)
    assert large.read(part, "here") == Image(URL, max_pixels=512 * 512)
    assert read(part) == Image(URL, max_pixels=10_000)
    assert large.read({**part, "max_pixels": 700_000}, "here") == Image(URL, max_pixels=700_000)


@pytest.mark.parametrize(
    ("part", "loading", "rate", "frames"),
    [
        ({"fps": 1}, None, 1.0, None),
        ({"max_frames": 8}, None, None, 8),
        ({"max_frames": 10**6}, None, None, 64),
        ({}, {"video": {"num_frames": 16}}, math.inf, 16),
        ({}, {"video": {"fps": 0.5}}, 0.5, None),
        ({"fps": 3}, {"video": {"fps": 0.5}}, 3.0, None),
        ({"fps": 3}, {"video": {"num_frames": 4}}, 3.0, None),
        ({"num_frames": 4}, {"video": {"fps": 3}}, math.inf, 4),
    ],
)
def test_how_a_clip_is_sampled(part: Any, loading: Any, rate: Any, frames: Any) -> None:
    found = read({"type": "video_url", "video_url": URL, **part}, None, loading)
    assert (found.fps, found.max_frames) == (rate, frames)


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"max_pixels": 0}, "here.max_pixels"),
        ({"max_pixels": True}, "here.max_pixels"),
        ({"max_pixels": 1.5}, "here.max_pixels"),
        ({"min_pixels": 700, "max_pixels": 600}, "here.min_pixels"),
        ({"fps": 0}, "here.fps"),
        ({"fps": "2"}, "here.fps"),
        ({"fps": 10**6}, "here.fps"),
        ({"fps": 1, "num_frames": 4}, "here.num_frames"),
        ({"max_frames": -1}, "here.max_frames"),
        ({"video": [URL] * 1025}, "here.video"),
        ({"video": []}, "here.video"),
    ],
)
def test_wrong_limits_are_named(part: Any, param: str) -> None:
    with pytest.raises(RequestError) as refused:
        read({"type": "video", "video": URL, **part})
    assert refused.value.body["error"]["param"] == param


def test_an_unknown_detail_is_named() -> None:
    with pytest.raises(RequestError, match="detail must be one of low"):
        read({"type": "image_url", "image_url": {"url": URL, "detail": "best"}})


def test_fewer_pixels_make_fewer_tokens(address: Address) -> None:
    def tokens(**extra: Any) -> int:
        body = {"messages": about(data_url((112, 112))), "max_tokens": 1, **extra}
        count: int = post(f"{address.url}/chat/completions", body)["usage"]["prompt_tokens_details"][
            "vision_tokens"
        ]
        return count

    assert tokens() == tokens(mm_processor_kwargs={"max_pixels": 10**9}) == 16
    assert tokens(mm_processor_kwargs={"max_pixels": 56 * 56}) == 4


def test_a_picture_stands_where_its_part_stands(address: Address) -> None:
    picture, words = about(data_url())[0]["content"]
    answers = []
    for content in ([picture, words], [words, picture], [words, picture, words, picture]):
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1, "return_token_ids": True}
        answers.append(post(f"{address.url}/chat/completions", body)["prompt_token_ids"])
    assert sorted(answers[0]) == sorted(answers[1])
    assert answers[0] != answers[1]
    assert len(answers[2]) > len(answers[1])


def test_the_field_of_a_medium_is_the_clients_though_messages_are_joined(address: Address) -> None:
    import httpx

    tool = {"type": "function", "function": {"name": "f"}}
    broken = {"type": "image_url", "image_url": {"url": "file:///etc/hostname"}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "tool", "content": "b"},
        {"role": "tool", "content": [{"type": "text", "text": "c"}, broken]},
    ]
    response = httpx.post(f"{address.url}/chat/completions", json={"messages": messages, "tools": [tool]})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages[2].content[1].image_url"
