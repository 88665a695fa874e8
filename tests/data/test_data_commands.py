"""`sightline data` as it is typed: what is printed, what is written, and the exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pillow

from sightline.cli.app import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command line in this process."""
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return int(caught.value.code or 0), printed.out, printed.err


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def llava(image: str = "a.png", answer: str = "A cat") -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": answer}]
    return {"image": image, "conversations": turns}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Pillow.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    return tmp_path


def test_convert_then_check(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write(folder / "in.jsonl", llava(), llava()), folder / "out.jsonl"
    code, printed, _ = run(capsys, "data", "convert", source, "-o", out)
    assert (code, printed) == (0, f"llava: 2 rows to {out}, 0 faulty left out\n")
    code, printed, _ = run(capsys, "data", "check", out)
    assert code == 0
    assert f"{out}: 2 rows, 2 good, 0 faulty" in printed
    assert "tokens were not counted: that needs --model" in printed


def test_convert_reports_and_still_writes_the_good(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = (
        write(folder / "in.jsonl", llava(), {"conversations": []}, llava("b.png")),
        folder / "out.jsonl",
    )
    code, printed, _ = run(capsys, "data", "convert", source, "--output", out)
    assert code == 1
    assert f"{source}:2: conversations must be a list" in printed
    assert f"llava: 2 rows to {out}, 1 faulty left out" in printed
    assert "1 row of them with media that are not there" in printed
    assert len(out.read_text().splitlines()) == 2
    code, printed, _ = run(capsys, "data", "convert", source, "-o", out, "--json", "--max_samples", 1)
    assert code == 0
    assert json.loads(printed)["written"] == 1


def test_check_names_file_line_and_cause(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = {
        "messages": [{"role": "user", "content": "<image>x"}, {"role": "assistant", "content": "y"}],
        "images": ["a.png"],
    }
    data = write(folder / "rows.jsonl", good, {**good, "images": ["none.png"]}, {**good, "images": []})
    kept = folder / "kept" / "good.jsonl"
    code, printed, _ = run(capsys, "data", "check", data, "--write-good", kept)
    assert code == 1
    assert f"{data}:2: there is no file {folder / 'none.png'}" in printed
    assert f"{data}:3: 1 <image> tag but 0 images" in printed
    assert "3 rows, 1 good, 2 faulty" in printed
    assert [json.loads(line)["images"] for line in kept.read_text().splitlines()] == [[str(folder / "a.png")]]
    code, printed, _ = run(capsys, "data", "check", kept)
    assert code == 0


def test_check_counts_tokens_with_a_model(
    folder: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {
        "messages": [{"role": "user", "content": "<image>x"}, {"role": "assistant", "content": "y"}],
        "images": ["a.png"],
    }
    long = {"messages": [{"role": "user", "content": "word " * 500}, {"role": "assistant", "content": "y"}]}
    data = write(folder / "rows.jsonl", row, row, long)
    code, printed, _ = run(capsys, "data", "check", data, "--model", tiny_folder)
    assert code == 0
    assert "tokens per row" in printed
    assert "█" in printed
    code, printed, _ = run(
        capsys, "data", "check", data, "--model", tiny_folder, "--max-length", 200, "--json"
    )
    report = json.loads(printed)
    assert code == 1
    assert report["causes"] == {"too-long": 1}
    assert [fault["line"] for fault in report["faults"]] == [3]
    assert (report["rows"], report["good"], report["tokens"]["counted"]) == (3, 2, 3)
    # 64x64 pixels grow to 56x56 or more: at least 4 vision tokens an image.
    assert report["tokens"]["vision"] >= 8
    assert sum(bin["rows"] for bin in report["tokens"]["histogram"]) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("convert", "none.json", "-o", "out.jsonl"), 1, "cannot read none.json"),
        (("convert", "none.json"), 2, "--output"),
        (("convert", "none.json", "-o", "out.jsonl", "--from", "parquet"), 2, "use one of llava"),
        (("convert", "none.json", "-o", "out.jsonl", "--captions", "some"), 2, "write all or first"),
        (("convert", "none.json", "-o", "out.jsonl", "--max-samples", "0"), 2, "max-samples"),
        (
            ("convert", "none.json", "-o", "out.jsonl", "--media-root", "nowhere"),
            1,
            "nowhere is not a folder",
        ),
        (("check", "none.jsonl"), 1, "cannot read none.jsonl"),
        (("check", "none.jsonl", "--max-length", "5"), 2, "needs --model"),
        (("check", "none.jsonl", "--model", "nowhere"), 1, "nowhere"),
        (("check",), 2, "DATA"),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    found, _, err = run(capsys, "data", *arguments)
    assert found == code
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert words in errors[0]
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ((), ("convert",), ("check",)):
        code, printed, _ = run(capsys, "data", *command, "--help")
        assert code == 0
        assert "Example" in printed


def test_as_a_process(folder: Path) -> None:
    data = write(folder / "rows.jsonl", {"messages": [{"role": "user", "content": "hi"}]})
    command = [sys.executable, "-m", "sightline.cli.app", "data", "check", str(data)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 1
    assert f"{data}:1: no message is the assistant's" in done.stdout
    assert done.stderr == ""
