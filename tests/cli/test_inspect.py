"""The inspect command on everything it knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_parts import make_config, make_folder, make_layout
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file

from sightline.checkpoints.megatron.convert import hf_to_mm
from sightline.checkpoints.verify import load_plain
from sightline.cli.app import main


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main(["inspect", *map(str, arguments)])
    return int(left.value.code or 0)


def found(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert call(path, "--json") == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def test_a_model(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = found(tiny_folder, capsys)
    assert (told["kind"], told["architecture"]) == ("model", "Qwen2_5_VLForConditionalGeneration")
    assert told["details"]["layers"] == 2
    assert set(told["parts"]) == {"vision tower", "projector", "embedding", "language model", "head"}
    assert sum(part["bytes"] for part in told["parts"].values()) == told["total"]["bytes"]
    assert told["total"]["numbers"] * 4 == told["total"]["bytes"]
    assert list(told["dtypes"]) == ["F32"]
    assert call(tiny_folder) == 0
    printed = capsys.readouterr().out
    for words in ("Qwen2_5_VLForConditionalGeneration", "vision tower", "model.safetensors", "F32"):
        assert words in printed


def test_an_adapter(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = LoraConfig(target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 2}, r=4, lora_alpha=12)
    get_peft_model(load_plain(tiny_folder), settings).save_pretrained(tmp_path / "lora")
    told = found(tmp_path / "lora", capsys)
    assert told["kind"] == "adapter"
    assert told["details"]["rank"] == {"2": 2, "4": 2}
    assert told["details"]["targets"] == {"q_proj": 2, "v_proj": 2}
    assert told["details"]["alpha"] == 12
    assert told["details"]["base"] == str(tiny_folder)


def test_a_checkpoint_of_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "hf", make_config())
    hf_to_mm(
        tmp_path / "hf", tmp_path / "mm", make_layout("[[1,1],[1,1]]", "[[4,0],[0,0]]", 2, canonical=True)
    )
    for path in (tmp_path / "mm", tmp_path / "mm/release"):
        told = found(path, capsys)
        assert told["kind"] == "MindSpeed-MM checkpoint"
        assert told["details"] == {
            "tensor-parallel ranks": 2,
            "pipeline ranks": 2,
            "virtual stages of each": 2,
            "canonical": True,
            "iteration": "release",
        }
        assert len(told["files"]) == 4


def test_a_file_and_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "x.safetensors")
    assert found(tmp_path / "x.safetensors", capsys)["kind"] == "weights"
    (tmp_path / "empty").mkdir()
    for path, words in ((tmp_path / "no", "does not exist"), (tmp_path / "empty", "has no weights")):
        assert call(path) == 1
        assert words in capsys.readouterr().err
