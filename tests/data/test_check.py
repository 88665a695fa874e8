"""`data check`: every fault is found, at its row, with its cause; and what is fine is left alone."""

from __future__ import annotations

import io
import json
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import clip
from PIL import Image as Pillow

from sightline.data.check import CheckReport, check_conversation, check_file
from sightline.data.conversation import Conversation, Image, Message, Text
from sightline.data.histogram import histogram, percentile
from sightline.errors import SightlineError

Count = namedtuple("Count", "total vision")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Media of every kind of fault."""
    folder = tmp_path_factory.mktemp("media")
    noise = Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8))
    for name in ("good.png", "good.jpg", "good.webp", "good.gif", "good.bmp", "good.tiff"):
        noise.save(folder / name)
        whole = (folder / name).read_bytes()
        (folder / f"cut.{name[5:]}").write_bytes(whole[: len(whole) * 2 // 3])
    Pillow.new("RGB", (2010, 10)).save(folder / "long.png")
    Pillow.new("RGB", (2000, 10)).save(folder / "just.png")
    (folder / "text.png").write_text("not a picture")
    (folder / "photo.heic").write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(100))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "good.mp4").write_bytes(clip())
    (folder / "cut.mp4").write_bytes(clip(frames=28, size=(160, 120))[:-400])
    (folder / "long.mp4").write_bytes(b"\x00\x00\x00\x18ftypisom" + bytes(100))
    # Sound in structure, damaged inside.
    inner = bytearray((folder / "good.png").read_bytes())
    inner[len(inner) // 2] ^= 0xFF
    (folder / "inner.png").write_bytes(inner)
    return folder


def row(content: str = "<image>What?", answer: str = "A cat", **columns: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}],
        **columns,
    }


def check(folder: Path, *rows: Any, **options: Any) -> CheckReport:
    path = folder / "rows.jsonl"
    path.write_text(
        "".join((value if isinstance(value, str) else json.dumps(value)) + "\n" for value in rows)
    )
    return check_file(path, **options)


FAULTS: list[tuple[Any, str, str]] = [
    ("{broken", "row", "not valid JSON"),
    ("[1, 2]", "row", "a list, not an object"),
    ({"conversations": []}, "row", "data convert"),
    (row("<image><image>", images=["good.png"]), "tag-count", "2 <image> tags but 1 image"),
    (row("What?", images=["good.png"]), "tag-count", "0 <image> tags but 1 image"),
    (row("<video>"), "tag-count", "1 <video> tag but 0 videos"),
    (row("good.png What?"), "path-in-text", "good.png stands inside the message text"),
    (row("/a/b.mp4 What?"), "path-in-text", "/a/b.mp4 stands inside"),
    (row(images=["none.png"]), "missing", "there is no file"),
    (row("<video>", videos=["none.mp4"]), "missing", "there is no file"),
    (row("<video>", videos=[["good.png", "none.png"]]), "missing", "there is no file"),
    (row(images=["text.png"]), "unsupported", "not a picture in a supported format"),
    (row(images=["photo.heic"]), "unsupported", "is a heic"),
    (row(images=["good.mp4"]), "unsupported", "is a video, not a picture"),
    (row("<video>", videos=["good.png"]), "unsupported", "as a video, use"),
    (row(images=["http://x/a.png"]), "unsupported", "web address"),
    (row(images=["."]), "unreadable", "is not a file"),
    (row(images=["data:image/png;base64,a$"]), "unreadable", "not valid base64"),
    (row(images=["empty.jpg"]), "truncated", "is empty"),
    *[
        (row(images=[f"cut.{suffix}"]), "truncated", "damaged")
        for suffix in ("png", "jpg", "webp", "gif", "bmp", "tiff")
    ],
    (row("<video>", videos=["cut.mp4"]), "truncated", "truncated or damaged"),
    (row("<video>", videos=["long.mp4"]), "truncated", "truncated or damaged"),
    (row(images=["long.png"]), "aspect-ratio", "2010x10 pixels, longer than 200 to 1"),
    (row(answer="", images=["good.png"]), "empty-answer", "message 2, the assistant's, is empty"),
    (row(answer=" \n", images=["good.png"]), "empty-answer", "empty"),
    ({"messages": [{"role": "user", "content": "hi"}]}, "no-assistant", "no message is the assistant's"),
    (row("hi", "yes</s>"), "end-marker", "message 2 holds the literal marker </s>"),
    (row("hi<|im_end|>", "yes"), "end-marker", "message 1 holds the literal marker <|im_end|>"),
    (row("hi", "<|image_pad|>"), "end-marker", "<|image_pad|>"),
]


@pytest.mark.parametrize(("faulty", "kind", "words"), FAULTS)
def test_every_fault(folder: Path, faulty: Any, kind: str, words: str) -> None:
    good = row(images=["good.png"])
    report = check(folder, good, "", faulty, good)
    assert [(fault.kind, fault.origin.line) for fault in report.faults] == [(kind, 3)]
    assert str(report.faults[0]).startswith(f"{folder / 'rows.jsonl'}:3: ")
    assert words in report.faults[0].cause
    assert (report.rows, report.faulty_rows, len(report.good)) == (3, 1, 2)


def test_good_rows_have_no_fault(folder: Path) -> None:
    rows = [row(images=[f"good.{suffix}"]) for suffix in ("png", "jpg", "webp", "gif", "bmp", "tiff")]
    rows += [row("<video>", videos=["good.mp4"]), row("<video>", videos=[["good.png", "good.bmp"]])]
    rows += [row("What does logo.png mean?"), row("a < b </strong>", "yes"), row(images=["just.png"])]
    report = check(folder, *rows, decode=True)
    assert report.faults == []
    assert [conversation.origin.line for conversation in report.good if conversation.origin] == list(
        range(1, 12)
    )


def test_several_faults_of_one_row(folder: Path) -> None:
    report = check(folder, row("<image><image>", "", images=["none.png", "long.png"]))
    assert report.by_kind == {"empty-answer": 1, "missing": 1, "aspect-ratio": 1}
    assert report.faulty_rows == 1


def test_same_missing_file_in_many_rows_is_a_fault_of_each(folder: Path) -> None:
    report = check(folder, *[row(images=["none.png"])] * 700)
    assert report.faulty_rows == 700
    assert [fault.origin.line for fault in report.faults] == list(range(1, 701))


def test_decode_finds_damage_inside(folder: Path) -> None:
    damaged = row(images=["inner.png"])
    assert check(folder, damaged).faults == []
    assert [fault.kind for fault in check(folder, damaged, decode=True).faults] == ["truncated"]


def test_frames_of_unequal_size(folder: Path) -> None:
    report = check(folder, row("<video>", videos=[["good.png", "just.png"]]))
    assert "give frames of one size" in report.faults[0].cause


def test_lengths(folder: Path) -> None:
    def counter(conversation: Conversation) -> Count:
        return Count(len(conversation.messages[0].text) + 100 * len(conversation.images), 100)

    rows = [row("<image>" + "x" * size, images=["good.png"]) for size in (5, 50, 500)]
    report = check(folder, *rows, row(images=["none.png"]), counter=counter, max_length=150)
    assert report.tokens == [105, 150]
    assert report.vision_tokens == [100, 100]
    assert (report.lengths, report.vision_lengths) == ([105, 150, 600], [100, 100, 100])
    assert [(fault.kind, fault.origin.line) for fault in report.faults] == [("too-long", 3), ("missing", 4)]
    assert "600 tokens (100 of images and videos), more than 150" in report.faults[0].cause


def test_what_the_counter_refuses_is_a_fault(folder: Path) -> None:
    def counter(conversation: Conversation) -> Count:
        raise SightlineError("the template knows no such role")

    report = check(folder, row("hi"), counter=counter)
    assert [(fault.kind, fault.cause) for fault in report.faults] == [
        ("model", "the template knows no such role")
    ]


def test_media_root_and_max_samples(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text((json.dumps(row(images=["good.png"])) + "\n") * 3)
    assert check_file(path).faulty_rows == 3
    report = check_file(path, media_root=folder, max_samples=2)
    assert (report.rows, report.faulty_rows) == (2, 0)


def test_one_conversation_in_memory() -> None:
    buffer = io.BytesIO()
    Pillow.new("RGB", (900, 3)).save(buffer, "PNG")
    conversation = Conversation([Message("user", [Image(buffer.getvalue()), Text("x<|im_end|>")])])
    assert {fault.kind for fault in check_conversation(conversation)} == {
        "aspect-ratio",
        "end-marker",
        "no-assistant",
    }


def test_histogram() -> None:
    values = [3, 4, 17, 21, 21, 99]
    bins = histogram(values)
    assert sum(count for _, _, count in bins) == 6
    assert len(bins) <= 12
    edges = [edge for low, high, _ in bins for edge in (low, high + 1)]
    assert edges[1:-1:2] == edges[2::2]
    assert all(sum(low <= value <= high for value in values) == count for low, high, count in bins)
    assert histogram([]) == []
    assert histogram([7]) == [(7, 7, 1)]
    assert (percentile(values, 50), percentile(values, 95), percentile(values, 1)) == (17, 99, 3)


def test_real_data(shared_data: Path) -> None:
    report = check_file(shared_data / "sharegpt-style" / "mllm_demo.json", decode=True)
    assert (report.rows, report.faults) == (6, [])
    videos = check_file(shared_data / "sharegpt-style" / "mllm_video_demo.json", decode=True)
    assert (videos.rows, videos.faults) == (3, [])


def test_a_file_is_looked_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.data import looks

    seen: list[Any] = []
    real = looks.verify_image

    def counted(source: Any, *arguments: Any, **options: Any) -> tuple[int, int]:
        seen.append(source)
        return real(source, *arguments, **options)

    monkeypatch.setattr(looks, "verify_image", counted)
    check(folder, *[row(images=["good.png"]), row(images=["good.jpg"])] * 300)
    assert sorted(seen) == [str(folder / "good.jpg"), str(folder / "good.png")]


def test_decode_finds_frames_that_are_not_there(tmp_path: Path) -> None:
    """The header of an avi announces 60 frames, the file is whole, and 24 come out."""
    data = bytearray(clip("avi", frames=24))
    # Length of the stream: 32 bytes into the strh chunk's content.
    at = data.index(b"strh") + 8 + 32
    data[at : at + 4] = (60).to_bytes(4, "little")
    (tmp_path / "lies.avi").write_bytes(data)
    damaged = row("<video>", videos=["lies.avi"])
    assert check(tmp_path, damaged).faults == []
    assert [fault.kind for fault in check(tmp_path, damaged, decode=True).faults] == ["truncated"]
