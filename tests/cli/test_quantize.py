"""The quantize command: what it prints and how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sightline.cli.app import main


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main(["quantize", *map(str, arguments)])
    return int(left.value.code or 0)


def test_quantizes_and_proves(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert (
        call("--model", tiny_folder, "-o", out, "--quantization", "int4", "--group_size", "64", "--verify")
        == 0
    )
    printed = capsys.readouterr().out
    assert "in 8 bit, 14 in 4 bit, 0 as they were" in printed
    assert "mean KL" in printed
    assert (out / "config.json").is_file()


def test_prints_json(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--model", tiny_folder, "-o", tmp_path / "out", "--skip", "visual.*", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["int8"], report["int4"]) == ("int8", 14, 0)
    assert report["bytes"] < report["bytes_before"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--quantization", "fp4"), 2, "is not one of int8, int4"),
        (("--group-size", "33", "--quantization", "int4"), 2, "group size 33"),
        (("--skip", "attention"), 2, "fits no linear layer"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call("--model", tiny_folder, "-o", tmp_path / "out", *arguments) == code
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
