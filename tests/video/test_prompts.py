"""Files of prompts: what each line becomes, and why a line is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import SightlineError, UsageError
from sightline.video.prompts import BadRow, Row, check_text, read_prompts, slug
from sightline.video.size import parse_size


def read(folder: Path, text: str | bytes, name: str = "prompts.txt") -> tuple[list[Row], list[BadRow]]:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_prompts(path)


def reasons(folder: Path, *rows: Any) -> list[str]:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    return [bad.reason for bad in read(folder, "\n".join(lines), "prompts.jsonl")[1]]


def test_a_text_has_a_prompt_a_line(tmp_path: Path) -> None:
    rows, bad = read(tmp_path, "\ufeff# two cats\na cat\r\n\n  A cat, again!  \n#not this\n猫\n")
    assert [(row.line, row.number, row.prompt, row.name) for row in rows] == [
        (2, 1, "a cat", "0001-a-cat"),
        (4, 2, "A cat, again!", "0002-a-cat-again"),
        (6, 3, "猫", "0003-猫"),
    ]
    assert bad == []


def test_a_row_of_jsonl_sets_what_it_names_and_theirs_count_too(tmp_path: Path) -> None:
    rows, bad = read(
        tmp_path,
        '{"prompt": "# a cat", "negative_prompt": "dogs", "seed": 3, "size": "832*480", "frame_num": 81, "steps": 30,'
        ' "guide_scale": 5, "sample_shift": 3.5, "sample_solver": "euler", "fps": 24, "name": "first"}\n\n'
        '{"prompt": "two"}\n',
        "rows.jsonl",
    )
    assert bad == []
    assert rows[0].settings == {
        "negative_prompt": "dogs",
        "seed": 3,
        "width": 832,
        "height": 480,
        "frames": 81,
        "steps": 30,
        "guidance": 5.0,
        "shift": 3.5,
        "scheduler": "euler",
        "fps": 24,
    }
    assert (rows[0].prompt, rows[0].name) == ("# a cat", "first")
    assert (rows[1].line, rows[1].name) == (3, "0002-two")


def test_a_bad_line_is_told_and_the_others_stay(tmp_path: Path) -> None:
    rows, bad = read(tmp_path, '{"prompt": "a"}\nnot json\n{"prompt": "b"}\n', "rows.jsonl")
    assert [row.name for row in rows] == ["0001-a", "0003-b"]
    assert bad[0].line == 2
    assert bad[0].reason.startswith("not JSON: ")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "prompt must be a text, not None"),
        ({"prompt": "  "}, "prompt must be a text, not '  '"),
        ({"prompt": 3}, "prompt must be a text, not 3"),
        (["a"], 'a row must be an object with a prompt, not ["a"]'),
        ({"promt": "a"}, "unknown field 'promt'; did you mean prompt?"),
        ({"prompt": "a", "zzz": 1}, "unknown field 'zzz'"),
        ({"prompt": "a", "size": "832"}, "size '832' is not WIDTHxHEIGHT, such as 832x480"),
        (
            {"prompt": "a", "steps": 3, "sample_steps": 4},
            "sample_steps says steps a second time; leave one out",
        ),
        ({"prompt": "a", "width": 3, "size": "3x4"}, "size says width a second time; leave one out"),
        ({"prompt": "a", "name": "a/b"}, "name 'a/b' is no plain file name"),
        ({"prompt": "a", "name": "../a"}, "name '../a' is no plain file name"),
        ({"prompt": "a", "name": "a."}, "name 'a.' is no plain file name"),
        ({"prompt": "a", "name": ""}, "name '' is no plain file name"),
        ({"prompt": "a", "name": "猫" * 67}, "has 201 bytes; take up to 200"),
        ('{"prompt": "half \\ud800"}', "prompt is not UTF-8 text at character 5"),
        ('{"prompt": "a", "negative_prompt": "\\ud800"}', "negative_prompt is not UTF-8 text at character 0"),
    ],
)
def test_why_a_row_is_refused(tmp_path: Path, row: Any, reason: str) -> None:
    (found,) = reasons(tmp_path, row)
    assert reason in found


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\xff\xfe", "is not UTF-8 text"), (b"# nothing\n\n", "has no prompt; write one a line")],
)
def test_a_file_without_prompts_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(SightlineError, match=message):
        read(tmp_path, content)
    with pytest.raises(SightlineError, match=r"is JSON; write an object a line and name it prompts.jsonl"):
        read(tmp_path, '[{"prompt": "a"}]', "prompts.json")
    with pytest.raises(SightlineError, match="cannot read .*absent.txt: No such file"):
        read_prompts(tmp_path / "absent.txt")


@given(st.text())
def test_a_slug_is_a_part_of_a_file_name(text: str) -> None:
    part = slug(text)
    assert part == slug(text)
    assert 1 <= len(part.encode()) <= 96
    assert len(part) <= 48
    assert re.fullmatch(r"(\w|-)+", part)
    assert not part.startswith("-")
    assert not part.endswith("-")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("A three, moving LEFT!", "a-three-moving-left"),
        ("snake_case __ x", "snake-case-x"),
        ("../../etc/passwd", "etc-passwd"),
        ("!?", "video"),
        ("猫が走る", "猫が走る"),
        ("ﬁne ①", "fine-1"),
    ],
)
def test_slugs(text: str, part: str) -> None:
    assert slug(text) == part


@given(st.integers(0, 99999), st.integers(0, 99999), st.sampled_from(["x", "*", "X", " x ", "×"]))
def test_sizes_are_read_in_every_spelling(width: int, height: int, between: str) -> None:
    assert parse_size(f"{width}{between}{height}") == (width, height)


@pytest.mark.parametrize(
    "text", ["", "832", "832x", "x480", "832x480x3", "8.5x4", "-8x4", "832,480", None, 832, [8, 4]]
)
def test_other_sizes_are_refused(text: Any) -> None:
    with pytest.raises(UsageError, match="is not WIDTHxHEIGHT, such as 832x480"):
        parse_size(text)


def test_a_text_of_the_command_line_in_another_encoding_is_refused() -> None:
    check_text("a 猫", "--prompt")
    with pytest.raises(
        UsageError, match=r"--prompt is not UTF-8 text at character 2; save or type it as UTF-8"
    ):
        check_text(b"a \xe4".decode(errors="surrogateescape"), "--prompt")
