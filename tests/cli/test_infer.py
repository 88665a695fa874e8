"""The infer command: its three sources, what it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image as Pillow

from sightline.cli.app import main

PLAIN = ("--dtype", "fp32", "--device", "cpu", "--max-output-length", "4")


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main(["infer", *map(str, arguments), *PLAIN])
    return int(left.value.code or 0)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for name, colour in (("a.png", "red"), ("b.jpg", "blue"), ("deep/c.webp", "green")):
        Pillow.new("RGB", (64, 64), colour).save(folder / name)
    return folder


def test_one_prompt(tiny_folder: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--prompt", "which is red?", "--image", pictures / "a.png", "--image", pictures / "b.jpg")
    assert call("--model", tiny_folder, *asked) == 0
    printed = capsys.readouterr()
    assert "Question: [a.png, b.jpg] which is red?\nAnswer: " in printed.out
    for words in ("1 answered, 0 failed", "8 of them from images", "Time to first token", "tokens/s"):
        assert words in printed.out
    assert "as the checkpoint records" in printed.err


def test_a_folder(
    tiny_folder: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    asked = ("--dataset_path", pictures, "--prompt", "what?", "-o", out, "--json", "--max-pixels", "3136")
    assert call("--model", tiny_folder, *asked) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert (summary["answered"], summary["vision_tokens"]) == (3, 12)
    assert "as the checkpoint records" not in printed.err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [Path(row["images"][0]).name for row in rows] == ["a.png", "b.jpg", "c.webp"]
    assert all(row["messages"][0]["content"] == "<image>what?" for row in rows)


def test_a_dataset_with_a_bad_row(
    tiny_folder: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "out.jsonl"
    names = ("pictures/a.png", "pictures/none.png", "pictures/b.jpg")
    rows = [{"messages": [{"role": "user", "content": "<image>?"}], "images": [name]} for name in names]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert call("--model", tiny_folder, "--data", data, "-o", out, "--max_batch_size", "2") == 1
    printed = capsys.readouterr()
    assert "3: 2 answered, 1 failed" in printed.out
    assert "1 of 3 questions failed" in printed.err
    assert "none.png" in printed.err
    assert len(out.read_text().splitlines()) == 3
    # Again: nothing is left to do, and the failure is still one.
    assert call("--model", tiny_folder, "--data", data, "-o", out) == 1
    assert "3 of them by an earlier run" in capsys.readouterr().out


def test_wrong_usage(
    tiny_folder: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, code, words in (
        ((), 2, "nothing to ask"),
        (("--data", "x", "--dataset-path", "y"), 2, "exclude each other"),
        (("--data", "x", "--prompt", "y"), 2, "leave --prompt"),
        (("--dataset-path", pictures, "--prompt", "?"), 2, "-o results.jsonl"),
        (("--dataset-path", tmp_path / "no", "--prompt", "?"), 2, "not a folder"),
        (("--data", tmp_path / "no.jsonl", "-o", tmp_path / "o"), 1, "no.jsonl"),
        (("--prompt", "?", "--temperature", "-1"), 2, "temperature"),
        (("--prompt", "?", "--image", tmp_path / "no.png"), 1, "no.png"),
        (("--prompt", "?", "--adapter", tmp_path), 1, "adapter_config.json"),
        (("--prompt", "?", "--top-k", "x"), 2, "top-k"),
        (("--prompt", "?", "--gpu-memory-utilization", "1.5"), 2, "gpu_memory_utilization must be"),
        (("--prompt", "?", "--cpu-memory-share", "0"), 2, "cpu_memory_share must be"),
        (("--prompt", "?", "--device-map", "balanced"), 2, "device_map 'balanced'"),
        (("--prompt", "?", "--min-pixels", "0"), 2, "min_pixels must be"),
        (("--prompt", "?", "--limit-mm-per-prompt", "4"), 2, "write image=4,video=1"),
        (("--prompt", "?", "--limit-mm-per-prompt", "audio=4"), 2, "known are image and video"),
        (
            ("--prompt", "?", "--image", pictures / "a.png", "--limit-mm-per-prompt", "image=0"),
            1,
            "limit_mm_per_prompt allows 0",
        ),
    ):
        assert call("--model", tiny_folder, *arguments) == code, words
        errors = capsys.readouterr().err
        assert words in errors
        assert "Traceback" not in errors
