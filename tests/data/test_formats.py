"""Foreign formats: golden rows of each, detection, and what happens to bad rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sightline.data.conversation import RowError
from sightline.data.formats import FORMATS, Options, convert, detect
from sightline.data.formats.alpaca import ALPACA
from sightline.data.formats.llava import LLAVA
from sightline.data.formats.messages import OPENAI, SHAREGPT
from sightline.data.rows import load_conversations, parse_row
from sightline.data.tags import path_in_text
from sightline.errors import SightlineError, UsageError

# format -> (its row, our row with media under /src)
GOLDEN: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {
    "llava": [
        (
            {
                "id": "7",
                "image": "a/1.png",
                "conversations": [
                    {"from": "human", "value": "What?\n<image>"},
                    {"from": "gpt", "value": "A cat"},
                ],
            },
            {
                "messages": [
                    {"role": "user", "content": "What?\n<image>"},
                    {"role": "assistant", "content": "A cat"},
                ],
                "images": ["/src/a/1.png"],
                "id": "7",
            },
        ),
        (
            {
                "video": ["v.mp4", "/abs/w.avi"],
                "system": "Be brief.",
                "conversations": [
                    {"from": "Human", "value": "<video><video>"},
                    {"from": "GPT", "value": "x"},
                ],
            },
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "<video><video>"},
                    {"role": "assistant", "content": "x"},
                ],
                "videos": ["/src/v.mp4", "/abs/w.avi"],
            },
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
        ),
    ],
    "sharegpt": [
        (
            {
                "messages": [
                    {"role": "user", "content": "<image>Who?"},
                    {"role": "assistant", "content": "They"},
                ],
                "image": ["/path.png"],
            },
            {
                "messages": [
                    {"role": "user", "content": "<image>Who?"},
                    {"role": "assistant", "content": "They"},
                ],
                "images": ["/path.png"],
            },
        ),
        (
            {
                "conversations": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
                "channel": "x",
            },
            {
                "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}],
                "channel": "x",
            },
        ),
    ],
    "openai": [
        (
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "What is "},
                            {
                                "type": "image_url",
                                "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"},
                            },
                            {"type": "image_url", "image_url": "b.png"},
                        ],
                    },
                    {"role": "assistant", "content": [{"type": "text", "text": "A dog"}]},
                ]
            },
            {
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "What is <image><image>"},
                    {"role": "assistant", "content": "A dog"},
                ],
                "images": ["data:image/png;base64,AA==", "/src/b.png"],
            },
        )
    ],
    "alpaca": [
        (
            {
                "instruction": "<image>Translate",
                "input": "cat",
                "output": "Katze",
                "system": "You translate.",
                "history": [["Hi", "Hello"]],
                "images": ["c.png"],
            },
            {
                "messages": [
                    {"role": "system", "content": "You translate."},
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": "Hello"},
                    {"role": "user", "content": "<image>Translate\ncat"},
                    {"role": "assistant", "content": "Katze"},
                ],
                "images": ["/src/c.png"],
            },
        ),
        (
            {"instruction": "Say hi", "input": "", "output": "hi", "id": 3},
            {
                "messages": [{"role": "user", "content": "Say hi"}, {"role": "assistant", "content": "hi"}],
                "id": 3,
            },
        ),
        (
            {"query": "<video>Say", "response": "hi", "videos": ["a.mp4"], "history": None},
            {
                "messages": [
                    {"role": "user", "content": "<video>Say"},
                    {"role": "assistant", "content": "hi"},
                ],
                "videos": ["/src/a.mp4"],
            },
        ),
    ],
}
CASES = [(name, given_, wanted) for name, pairs in GOLDEN.items() for given_, wanted in pairs]


def write(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value) if not isinstance(value, str) else value)
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def absolute(row: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The golden row with /src standing for the folder of the source."""
    media = {
        key: [entry.replace("/src", str(folder)) for entry in row[key]]
        for key in ("images", "videos")
        if key in row
    }
    return {**row, **media}


@pytest.mark.parametrize(("name", "source_row", "wanted"), CASES)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_golden_rows(tmp_path: Path, name: str, source_row: dict, wanted: dict, suffix: str) -> None:
    body = [source_row] if suffix == ".json" else json.dumps(source_row) + "\n"
    source = write(tmp_path / "in" / f"rows{suffix}", body)
    assert detect(source).name == name
    report = convert(source, tmp_path / "out" / "rows.jsonl")
    assert (report.format, report.written, report.bad) == (name, 1, [])
    assert rows_of(report.output) == [absolute(wanted, source.parent)]
    named = convert(source, tmp_path / "out" / "named.jsonl", format=name)
    assert rows_of(named.output) == [absolute(wanted, source.parent)]


def test_output_beside_the_media_has_relative_paths(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.json", [GOLDEN["llava"][0][0]])
    convert(source, tmp_path / "out.jsonl")
    assert rows_of(tmp_path / "out.jsonl")[0]["images"] == ["a/1.png"]
    conversation = load_conversations(tmp_path / "out.jsonl")[0]
    assert conversation.images[0].source == str(tmp_path / "a/1.png")


def test_converting_our_own_rows_changes_nothing(tmp_path: Path) -> None:
    for name, pairs in GOLDEN.items():
        write(tmp_path / f"{name}.jsonl", "".join(json.dumps(wanted) + "\n" for _, wanted in pairs))
        convert(tmp_path / f"{name}.jsonl", tmp_path / "out.jsonl")
        assert rows_of(tmp_path / "out.jsonl") == [wanted for _, wanted in pairs]


def test_mixed_rows_are_each_taken_by_their_shape(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.json", [pairs[-1][0] for pairs in GOLDEN.values()])
    report = convert(source, tmp_path / "out.jsonl")
    assert (report.written, report.bad) == (4, [])


BAD = [
    ({"conversations": []}, "at least one {from, value}"),
    ({"conversations": [{"from": "alien", "value": "x"}]}, "turn 1 is from 'alien'"),
    ({"conversations": [{"from": "human"}]}, "turn 1 has no value"),
    ({"conversations": ["x"]}, "turn 1 is not an object"),
    ({"image": "a.png", "conversations": [{"from": "human", "value": "x"}]}, "0 <image> tags but 1 image"),
    ({"instruction": 3, "output": "x"}, "instruction is missing or not a string"),
    ({"instruction": "x", "output": None}, "output is missing or not a string"),
    ({"instruction": "x", "output": "y", "history": [["a"]]}, "history must be a list"),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/a.png"}}]}
            ]
        },
        "web address",
    ),
]


@pytest.mark.parametrize(("bad", "words"), BAD)
def test_bad_rows_are_reported_and_the_good_written(tmp_path: Path, bad: dict, words: str) -> None:
    good = GOLDEN["llava"][2][0]
    source = write(
        tmp_path / "rows.jsonl", json.dumps(good) + "\n" + json.dumps(bad) + "\n" + json.dumps(good)
    )
    report = convert(source, tmp_path / "out.jsonl")
    assert report.written == 2
    assert len(rows_of(tmp_path / "out.jsonl")) == 2
    assert [str(error).startswith(f"{source}:2: ") for error in report.bad] == [True]
    assert words in str(report.bad[0])


def test_without_a_good_row_the_old_output_stays(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", json.dumps(BAD[0][0]))
    out = write(tmp_path / "out.jsonl", "old")
    report = convert(source, out)
    assert (report.written, len(report.bad)) == (0, 1)
    assert out.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]


def test_add_tags(tmp_path: Path) -> None:
    row = {"images": ["1.png", "2.png"], "messages": [{"role": "user", "content": "Compare"}]}
    source = write(tmp_path / "rows.json", [row])
    assert "--add-tags" in str(convert(source, tmp_path / "out.jsonl").bad[0])
    report = convert(source, tmp_path / "out.jsonl", add_tags=True)
    assert report.bad == []
    assert rows_of(report.output)[0]["messages"][0]["content"] == "<image><image>Compare"
    tagged = write(tmp_path / "tagged.json", [GOLDEN["llava"][0][0]])
    assert (
        rows_of(convert(tagged, tmp_path / "o.jsonl", add_tags=True).output)[0]["messages"][0]["content"]
        == "What?\n<image>"
    )


def test_max_samples_and_missing_media(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "1.png").write_bytes(b"x")
    row = {"images": ["1.png"], "messages": [{"role": "user", "content": "<image>"}]}
    source = write(tmp_path / "rows.json", [row] * 5)
    report = convert(source, tmp_path / "out.jsonl", options=Options(max_samples=3))
    assert (report.written, report.missing) == (3, 3)
    assert report.first_missing == str(tmp_path / "1.png")
    found = convert(source, tmp_path / "out.jsonl", options=Options(media_root=tmp_path / "root"))
    assert (found.written, found.missing) == (5, 0)


def test_unknown_forms_and_names(tmp_path: Path) -> None:
    with pytest.raises(SightlineError, match=r"no known form \(columns a, b\).*--from"):
        detect(write(tmp_path / "rows.json", [{"a": 1, "b": 2}]))
    with pytest.raises(SightlineError, match="no row that can be read"):
        detect(write(tmp_path / "empty.jsonl", ""))
    with pytest.raises(SightlineError, match="is a folder"):
        detect(tmp_path)
    with pytest.raises(SightlineError, match="cannot read"):
        convert(tmp_path / "none.json", tmp_path / "out.jsonl")
    with pytest.raises(UsageError, match="use one of llava, openai"):
        convert(tmp_path / "rows.json", tmp_path / "out.jsonl", format="parquet")


def coco(folder: Path, **changes: Any) -> Path:
    document = {
        "info": {},
        "images": [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}],
        "annotations": [
            {"id": 10, "image_id": 1, "caption": "A cat. "},
            {"id": 11, "image_id": 2, "caption": "A dog."},
            {"id": 12, "image_id": 1, "caption": "The cat."},
        ],
        **changes,
    }
    (folder / "train2017").mkdir(parents=True, exist_ok=True)
    return write(folder / "annotations" / "captions_train2017.json", document)


def test_coco(tmp_path: Path) -> None:
    source = coco(tmp_path / "coco")
    assert detect(source).name == "coco"
    report = convert(source, tmp_path / "out.jsonl", options=Options(prompt="Say."))
    assert (report.written, report.bad) == (3, [])
    assert rows_of(tmp_path / "out.jsonl")[0] == {
        "messages": [{"role": "user", "content": "<image>Say."}, {"role": "assistant", "content": "A cat."}],
        "images": ["coco/train2017/1.jpg"],
        "image_id": 1,
    }
    first = convert(source, tmp_path / "out.jsonl", options=Options(captions="first"))
    assert first.written == 2
    few = convert(source, tmp_path / "out.jsonl", options=Options(max_samples=1, media_root=tmp_path / "x"))
    assert few.written == 1
    assert rows_of(tmp_path / "out.jsonl")[0]["images"] == ["x/1.jpg"]


def test_coco_faults(tmp_path: Path) -> None:
    annotations = [{"image_id": 9, "caption": "x"}, {"image_id": 1}, 3, {"image_id": 1, "caption": "y"}]
    report = convert(coco(tmp_path / "a", annotations=annotations), tmp_path / "out.jsonl")
    assert report.written == 1
    assert [error.origin.line for error in report.bad if error.origin] == [1, 2, 3]
    assert "image_id 9" in report.bad[0].cause
    boxes = coco(tmp_path / "b", annotations=[{"image_id": 1, "bbox": [0, 0, 1, 1]}])
    with pytest.raises(SightlineError, match="holds no captions, only image_id, bbox"):
        convert(boxes, tmp_path / "out.jsonl")
    with pytest.raises(SightlineError, match="no images and annotations"):
        convert(write(tmp_path / "c.json", {"images": []}), tmp_path / "out.jsonl", format="coco")


def test_easy_vqa(tmp_path: Path) -> None:
    pytest.importorskip("easy_vqa", reason="the package easy-vqa is not installed")
    report = convert("easy-vqa:test", tmp_path / "out.jsonl", options=Options(max_samples=5))
    assert (report.format, report.written, report.missing) == ("easy-vqa", 5, 0)
    conversation = load_conversations(tmp_path / "out.jsonl")[0]
    assert conversation.images[0].source.endswith("test/images/0.png")  # type: ignore[union-attr]
    assert conversation.answer == "triangle"
    with pytest.raises(UsageError, match="no split 'validation'"):
        convert("easy-vqa:validation", tmp_path / "out.jsonl")


_text = st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"]), min_size=1, max_size=20)
_value = st.one_of(
    _text, st.none(), st.integers(), st.lists(_text, max_size=2), st.dictionaries(_text, _text, max_size=2)
)


@given(st.lists(st.tuples(_text, _text), min_size=1, max_size=4), st.integers(0, 3))
@settings(deadline=None)
def test_llava_and_sharegpt_say_the_same(turns: list[tuple[str, str]], images: int) -> None:
    tags, media = "<image>" * images, [f"{number}.png" for number in range(images)]
    names = [("human", "user"), ("gpt", "assistant")]
    said = [part for turn in turns for part in zip(names, turn, strict=True)]
    said[0] = (said[0][0], tags + said[0][1])
    llava = LLAVA.convert(
        {"conversations": [{"from": a, "value": text} for (a, _), text in said], "image": media}
    )
    messages = SHAREGPT.convert(
        {"messages": [{"role": b, "content": text} for (_, b), text in said], "images": media}
    )
    assume(images > 0 or not any(path_in_text(text, [Path("/d")], tagged=False) for _, text in said))
    assert parse_row(llava, folder=Path("/d")) == parse_row(messages, folder=Path("/d"))


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "conversations",
                "messages",
                "instruction",
                "input",
                "output",
                "query",
                "response",
                "history",
                "system",
            ]
        ),
        st.one_of(
            _value, st.lists(st.dictionaries(st.sampled_from(["from", "value", "role", "content"]), _value))
        ),
    )
)
@settings(deadline=None, max_examples=300)
def test_no_row_raises_anything_but_row_errors(row: dict[str, Any]) -> None:
    for format in (LLAVA, OPENAI, SHAREGPT, ALPACA):
        try:
            format.matches(row)
            parse_row(format.convert(row), folder=Path("/d"))
        except RowError:
            continue


def test_registry_names() -> None:
    assert list(FORMATS) == ["llava", "openai", "sharegpt", "alpaca", "easy-vqa", "coco"]


@pytest.mark.parametrize(
    ("path", "format", "written"),
    [
        ("llava-style/single_images.json", "llava", 3),
        ("llava-style/video.json", "llava", 3),
        ("sharegpt-style/mllm_demo.json", "sharegpt", 6),
        ("sharegpt-style/mllm_video_demo.json", "sharegpt", 3),
        ("coco-mini/annotations/captions_train2017.json", "coco", 400),
    ],
)
def test_real_data(tmp_path: Path, shared_data: Path, path: str, format: str, written: int) -> None:
    report = convert(shared_data / path, tmp_path / "out.jsonl")
    assert (report.format, report.written, report.bad) == (format, written, [])
    assert report.missing == (written if path.startswith("llava") else 0)


def test_a_source_is_never_written_over(tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    before = source.read_bytes()
    with pytest.raises(UsageError, match=r"rows\.jsonl is the source itself; choose another output"):
        convert(source, tmp_path / "." / "rows.jsonl")
    assert source.read_bytes() == before
