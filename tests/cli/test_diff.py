"""The diff command: what differs, by how much, and the exit code that says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from megatron_parts import make_config, make_folder
from safetensors.torch import load_file, save_file

from sightline.cli.app import main


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main(["diff", *map(str, arguments)])
    return int(left.value.code or 0)


def test_names_of_both_generations_are_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = make_folder(tmp_path / "old", make_config(), names="old")
    make_folder(tmp_path / "new", make_config(), names="new")
    assert call(tmp_path / "old", tmp_path / "new") == 0
    assert f"{len(tensors)} equal bit for bit, 0 differ" in capsys.readouterr().out


def test_how_much(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nan = float("nan")
    same = {"same": torch.ones(3), "nans": torch.tensor([nan, 1.0])}
    one = {
        "a": torch.tensor([3.0, 4.0]),
        "z": torch.zeros(2),
        "b": torch.ones(2, 2),
        "c": torch.ones(2),
        "d": torch.ones(1),
    }
    two = {
        "a": torch.tensor([3.0, 4.5]),
        "z": torch.tensor([0.0, -0.0]),
        "b": torch.ones(2, 3),
        "c": torch.tensor([1.0, 1.5], dtype=torch.bfloat16),
        "e": torch.ones(1),
    }
    save_file({**same, **one}, tmp_path / "one.safetensors")
    save_file({**same, **two}, tmp_path / "two.safetensors")
    assert call(tmp_path / "one.safetensors", tmp_path / "two.safetensors", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert told["equal"] == 2
    differing = {found["name"]: found for found in told["differing"]}
    assert (differing["a"]["largest"], differing["a"]["relative"], differing["a"]["numbers"]) == (0.5, 0.1, 1)
    assert (differing["z"]["largest"], differing["z"]["numbers"]) == (0.0, 1)  # 0.0 is not -0.0
    assert differing["c"]["largest"] == 0.5
    assert sorted(name for name, *_ in told["reshaped"]) == ["b", "c"]
    assert (told["only_first"], told["only_second"]) == (["d"], ["e"])
    assert call(tmp_path / "one.safetensors", tmp_path / "two.safetensors", "--limit", "1") == 1
    printed = capsys.readouterr().out
    assert "and 2 more differ (--limit 0 shows all)" in printed
    assert "d: only in" in printed


def test_a_nan_is_told_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = make_folder(tmp_path / "one", make_config())
    make_folder(tmp_path / "two", make_config())
    file = tmp_path / "two/model.safetensors"
    stored = load_file(file)
    stored["model.norm.weight"][3] = float("nan")
    stored["lm_head.weight"][0, 0] += 1
    save_file(stored, file)
    assert call(tmp_path / "one", tmp_path / "two") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("text.norm.weight: largest nan")
    assert lines[1].startswith("lm_head.weight: largest 1")
    assert f"{len(tensors) - 2} equal" in lines[-1]


def test_what_cannot_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "one", make_config())
    assert call(tmp_path / "one", tmp_path / "nowhere") == 1
    assert "does not exist" in capsys.readouterr().err
