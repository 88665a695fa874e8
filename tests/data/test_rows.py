"""Rows: what is read, what is refused and with which words, and that writing and reading give the same."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from sightline.data.conversation import Conversation, Image, Message, Origin, RowError, Text, Video
from sightline.data.images import open_image
from sightline.data.rows import load_conversations, parse_row, read_rows, to_row, write_rows
from sightline.data.tags import path_in_text
from sightline.errors import SightlineError

FOLDER = Path("/data")


def row(content: Any = "<image>hi", answer: str = "yes", **columns: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}],
        **columns,
    }


def parse(value: Any, folder: Path = FOLDER, root: Path | None = None) -> Conversation:
    return parse_row(value, origin=None, folder=folder, media_root=root)


def cause(value: Any, folder: Path = FOLDER) -> str:
    with pytest.raises(RowError) as caught:
        parse(value, folder)
    return caught.value.cause


def test_tags_take_media_in_order() -> None:
    conversation = parse(row("a<image>b<video><image>", images=["1.png", "/x/2.png"], videos=["v.mp4"]))
    assert conversation.messages[0].parts == [
        Text("a"),
        Image("/data/1.png"),
        Text("b"),
        Video("/data/v.mp4"),
        Image("/x/2.png"),
    ]
    assert conversation.answer == "yes"


@pytest.mark.parametrize(
    "columns", [{"image": "1.png"}, {"image": ["1.png"]}, {"images": "1.png", "image": None}]
)
def test_singular_keys(columns: dict[str, Any]) -> None:
    assert parse(row(**columns)).images == [Image("/data/1.png")]


def test_settings_of_media() -> None:
    conversation = parse(
        row(
            "<image><video>",
            images=[{"path": "1.png", "max_pixels": 100, "min_pixels": 10}],
            videos=[{"url": "v.mp4", "fps": 1, "max_frames": 8, "max_pixels": 50}],
        )
    )
    assert conversation.images == [Image("/data/1.png", 10, 100)]
    assert conversation.videos == [Video("/data/v.mp4", 1.0, 8, None, 50)]


def test_video_as_frames() -> None:
    nested = parse(row("<video>", videos=[["1.png", "2.png"]]))
    flat = parse(row("<video>", video=["1.png", "2.png"]))
    assert nested.videos == flat.videos == [Video(("/data/1.png", "/data/2.png"))]


def test_parts_text_is_literal_and_sources_may_stand_in_parts() -> None:
    content = [
        {"type": "text", "text": "see <image>"},
        {"type": "image"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "image", "image": "b.png", "max_pixels": 9},
    ]
    assert parse(row(content, images=["a.png"])).messages[0].parts == [
        Text("see <image>"),
        Image("/data/a.png"),
        Image("data:image/png;base64,AAAA"),
        Image("/data/b.png", max_pixels=9),
    ]


def test_other_columns_are_kept() -> None:
    conversation = parse(row(images=["1.png"], id=7, source="x"))
    assert conversation.extra == {"id": 7, "source": "x"}
    assert to_row(conversation)["id"] == 7


def test_system_column_becomes_a_message() -> None:
    conversation = parse(row("hi", system="Be brief."))
    assert conversation.messages[0] == Message("system", [Text("Be brief.")])
    assert "system" not in conversation.extra


def test_media_root_comes_after_the_folder(tmp_path: Path) -> None:
    folder, root = tmp_path / "rows", tmp_path / "root"
    for place in (folder, root):
        place.mkdir()
    (root / "only.png").write_bytes(b"x")
    (root / "both.png").write_bytes(b"x")
    (folder / "both.png").write_bytes(b"x")
    conversation = parse(row("<image><image>", images=["only.png", "both.png"]), folder, root)
    assert [image.source for image in conversation.images] == [
        str(root / "only.png"),
        str(folder / "both.png"),
    ]


def test_file_urls_are_decoded() -> None:
    value = row("<image><image>", images=["file:///a%20b/%C3%BC.png", "file://localhost/c#1.png"])
    assert [image.source for image in parse(value).images] == ["/a b/ü.png", "/c#1.png"]


@pytest.mark.parametrize(
    ("value", "words", "kind"),
    [
        (row("<image><image>x", images=["a.png"]), ("2 <image> tags", "1 image"), "tag-count"),
        (row("<image>x", images=["a.png", "b.png"]), ("1 <image> tag ", "2 images"), "tag-count"),
        (row("<video>x"), ("1 <video> tag ", "0 videos"), "tag-count"),
        (
            row("what?", images=["a.png"]),
            ("0 <image> tags but 1 image", "put one <image>", "--add-tags"),
            "tag-count",
        ),
        (
            row("/pics/a.jpg what?"),
            ("/pics/a.jpg", "inside the message text", "under images"),
            "path-in-text",
        ),
        (row("<image>a.jpg what?"), ("a.jpg", "inside the message text"), "path-in-text"),
        (row("<img>a.jpg</img>what?"), ("a.jpg", "inside the message text"), "path-in-text"),
        (row("clip.mp4\nwhat?"), ("clip.mp4", "inside the message text"), "path-in-text"),
        (row([{"type": "text", "text": "see ./a.png"}]), ("./a.png",), "path-in-text"),
        (row("<image>d/a.jpg what?", images=["d/a.jpg"]), ("d/a.jpg is listed", "remove it"), "path-in-text"),
        ({"conversations": []}, ("no messages", "data convert"), "row"),
        ({"messages": []}, ("at least one",), "row"),
        ({"messages": "hi"}, ("must be a list",), "row"),
        ({"messages": [1]}, ("message 1 is a number",), "row"),
        ({"messages": [{"role": "bot", "content": "x"}]}, ("role 'bot'", "assistant"), "row"),
        ({"messages": [{"role": "user"}]}, ("content of message 1 is null",), "row"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, ("tool",), "row"),
        (row([{"type": "audio"}]), ("type 'audio'",), "row"),
        (row([{"type": "text", "text": 3}]), ("text string",), "row"),
        (row(images=["a.png"], image="b.png"), ("both images and image",), "row"),
        (row(images=["http://x/a.png"]), ("web address", "download"), "unsupported"),
        (row(images=["file://host/a.png"]), ("not a local file URL",), "unsupported"),
        (row(images=["s3://x/a.png"]), ("not a path",), "unsupported"),
        (row(images=[5]), ("write the path",), "row"),
        (row(images=[{"max_pixels": 3}]), ("without path or url",), "row"),
        (row(images=[{"path": "a.png", "max_pixels": -3}]), ("max_pixels", "-3"), "row"),
        (row(images=[{"path": "a.png", "min_pixels": True}]), ("min_pixels", "True"), "row"),
        (row("<video>", videos=[{"path": "a.mp4", "fps": 0}]), ("fps", "above 0"), "row"),
        (row("<video>", videos=[[]]), ("empty list of frames",), "row"),
        (row(images=[["a.png"]]), ("is a list",), "row"),
        ([1], ("a list",), "row"),
    ],
)
def test_refusals(value: Any, words: tuple[str, ...], kind: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_row(value, origin=Origin("f.jsonl", 3), folder=FOLDER)
    assert str(caught.value).startswith("f.jsonl:3: ")
    assert caught.value.kind == kind
    for word in words:
        assert word in caught.value.cause


@pytest.mark.parametrize(
    "text", ["What does logo.png mean?", "Is it a .jpg file?", "version 1.mp4x", "hello"]
)
def test_file_names_in_a_sentence_are_no_mistake(text: str) -> None:
    assert parse(row(text)).messages[0].text == text


def test_name_of_an_existing_file_in_a_sentence_is_one(tmp_path: Path) -> None:
    (tmp_path / "logo.png").write_bytes(b"x")
    assert "logo.png" in cause(row("What does logo.png mean?"), tmp_path)


def test_reading_tolerates_and_reports(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps({"messages": []}).encode()
    path.write_bytes(b"\xef\xbb\xbf" + good + b"\r\n\r\n{bad\n" + b"\xff\xfe\n" + b"[1]\n" + good)
    rows = list(read_rows(path))
    assert [origin.line for origin, _ in rows] == [1, 3, 4, 5, 6]
    assert [isinstance(value, RowError) for _, value in rows] == [False, True, True, True, False]
    assert str(rows[1][1]).startswith(f"{path}:3: not valid JSON at character 2")
    assert "UTF-8" in str(rows[2][1])
    assert "a list" in str(rows[3][1])
    assert len(list(read_rows(path, max_samples=2))) == 2


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.txt"])
def test_json_list_whatever_the_suffix(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("\n" + json.dumps([row("a"), 5, row("b")], indent=1))
    values = [value for _, value in read_rows(path)]
    assert values[0] == row("a")
    assert isinstance(values[1], RowError)
    assert values[1].origin == Origin(str(path), 2)


def test_one_object_over_lines_in_json(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(row("a"), indent=1))
    assert [value for _, value in read_rows(path)] == [row("a")]
    path.write_text(json.dumps(row("a")) + "\n" + json.dumps(row("b")))
    assert len(list(read_rows(path))) == 2


def test_broken_files_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SightlineError, match=r"cannot read .*no such file"):
        list(read_rows(tmp_path / "none.jsonl"))
    with pytest.raises(SightlineError, match="is a directory"):
        list(read_rows(tmp_path))
    broken = tmp_path / "broken.json"
    broken.write_text('[{"a": 1},\n')
    with pytest.raises(SightlineError, match=r"broken.json:\d+: not valid JSON"):
        list(read_rows(broken))


@pytest.mark.parametrize("name", ["odd.jsonl", "odd.json"])
@pytest.mark.parametrize(
    ("text", "words"), [("1" * 5000, "not valid JSON"), ("[" * 200_000, "not valid JSON: nested too deeply")]
)
def test_what_python_cannot_read_is_no_row(tmp_path: Path, name: str, text: str, words: str) -> None:
    path = tmp_path / name
    path.write_text(f'{{"messages": {text}')
    try:
        found = str(next(row for _, row in read_rows(path)))
    except SightlineError as error:  # a json file is read as a whole
        found = str(error)
    assert words in found


def test_load_conversations(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row("a")) + "\n{}\n" + json.dumps(row("b")))
    with pytest.raises(RowError, match=r"rows.jsonl:2"):
        load_conversations(path)
    kept = load_conversations(path, on_bad="skip")
    assert [conversation.origin for conversation in kept] == [Origin(str(path), 1), Origin(str(path), 3)]
    assert len(load_conversations(path, max_samples=1)) == 1


def test_writing_makes_paths_relative_to_the_output(tmp_path: Path) -> None:
    out = tmp_path / "set" / "rows.jsonl"
    value = row("<image><image><video>", images=["1.png", "/elsewhere/2.png"])
    value["videos"] = [{"path": [str(out.parent / "f" / "1.png")], "fps": 1.0}]
    conversation = parse(value, out.parent)
    assert write_rows(out, [to_row(conversation)]) == 1
    written = json.loads(out.read_text())
    assert written["images"] == ["1.png", "/elsewhere/2.png"]
    assert written["videos"] == [{"path": ["f/1.png"], "fps": 1.0}]
    assert load_conversations(out)[0].messages == conversation.messages


def test_writing_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    out.write_text("old")

    def broken() -> Any:
        yield row("a")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(out, broken())
    assert out.read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_half_a_surrogate_pair_can_be_written(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    write_rows(out, [row("ü\ud800")])
    assert [value for _, value in read_rows(out)] == [row("ü\ud800")]


def test_bytes_and_open_pictures_become_data_urls() -> None:
    picture = Pillow.new("RGB", (3, 2), (255, 0, 0))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    messages = [Message("user", [Image(picture), Image(buffer.getvalue(), max_pixels=5)])]
    first, second = to_row(Conversation(messages))["images"]
    assert open_image(first).tobytes() == picture.tobytes()
    assert second["path"].startswith("data:image/jpeg;base64,")
    assert open_image(second["path"]).size == (3, 2)


_texts = st.one_of(
    st.text(min_size=1), st.sampled_from(["<image>", "<video>", "a<image>b", "<ima", "ge>", "\r\n"])
)
_names = st.text("abcdefghij é%#", min_size=1, max_size=8).map(lambda name: f"/m/{name}.png")
_sources = st.one_of(_names, st.just("data:image/png;base64,AAAA"))
_limits = st.one_of(st.none(), st.integers(1, 10**9))
_images = st.builds(Image, _sources, _limits, _limits)
_clips = st.one_of(_sources, st.lists(_sources, min_size=1, max_size=3).map(tuple))
_rates = st.one_of(st.none(), st.floats(0.01, 100))
_videos = st.builds(Video, _clips, _rates, _limits, _limits, _limits)
_parts = st.lists(st.one_of(st.builds(Text, _texts), _images, _videos), max_size=5)
_messages = st.builds(Message, st.sampled_from(["system", "user", "assistant", "tool"]), _parts)
_extra = st.dictionaries(st.sampled_from(["id", "source"]), st.one_of(st.integers(), st.text()))


@given(st.lists(_messages, min_size=1, max_size=4), _extra)
@settings(max_examples=300, deadline=None)
def test_to_row_and_parse_row_are_inverse(messages: list[Message], extra: dict[str, Any]) -> None:
    conversation = Conversation(messages, None, extra)
    written = json.loads(json.dumps(to_row(conversation)))
    media = [*conversation.images, *conversation.videos]
    texts = [message.text for message in messages if message.role == "user"]
    # Text that looks like a path, in a row without media, is a mistake by our own rules.
    if not media and any(path_in_text(text, [FOLDER], tagged=False) for text in texts):
        return
    assert parse(written) == conversation


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.sampled_from(["messages", "role", "content", "type", "text", "images", "videos", "path"]),
                inner,
            ),
        ),
    )
)
@settings(max_examples=300, deadline=None)
def test_no_row_raises_anything_but_row_errors(value: Any) -> None:
    for candidate in (
        value,
        {"messages": [{"role": "user", "content": value}]},
        row("<image><video>", images=value, videos=value),
    ):
        try:
            parse(candidate)
        except RowError:
            continue
