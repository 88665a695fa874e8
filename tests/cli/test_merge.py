"""The merge command: what it prints and how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from sightline.cli.app import main
from sightline.models.families import FAMILIES


@pytest.fixture
def adapter(tiny_folder: Path, tmp_path: Path) -> Path:
    model = FAMILIES["qwen2_5_vl"].model_class().from_pretrained(tiny_folder)
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def call(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as left:
        main(["merge", *map(str, arguments)])
    return int(left.value.code or 0)


def test_merges_and_proves(
    adapter: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call("--model", tiny_folder, "--adapter", adapter, "-o", out, "--verify") == 0
    printed = capsys.readouterr().out
    assert "2 tensors summed, 0 replaced" in printed
    assert "differs from base + adapter by at most" in printed
    assert (out / "tokenizer.json").read_bytes() == (tiny_folder / "tokenizer.json").read_bytes()


def test_the_adapter_names_its_base(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--adapter", adapter, "-o", tmp_path / "out", "--max_shard_size", "100KB", "--json")
    assert call(*arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["adapted"] == 2
    assert report["largest_difference"] is None
    assert (tmp_path / "out/model.safetensors.index.json").is_file()


def test_failures(
    adapter: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    for arguments, code, words in (
        (("--adapter", tiny_folder, "-o", tmp_path / "out"), 1, "adapter_config.json"),
        (("--adapter", adapter, "-o", taken), 1, "already exists"),
        (("--model", tmp_path, "--adapter", adapter, "-o", tmp_path / "out"), 1, "config.json"),
        (("--adapter", adapter, "-o", tmp_path / "out", "--max-shard-size", "big"), 2, "5GB"),
        (("--adapter", adapter), 2, "--output"),
    ):
        assert call(*arguments) == code
        errors = capsys.readouterr().err.strip()
        assert words in errors
        assert "Traceback" not in errors
    assert not (tmp_path / "out").exists()


def test_several_with_weights_then_checked(
    adapter: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    both = (
        "--model",
        tiny_folder,
        "--adapter",
        adapter,
        "--adapter",
        adapter,
        "--weight",
        "0.5",
        "--weight",
        "0.25",
    )
    assert call(*both, "-o", out, "--dry-run") == 0
    assert "would hold 2 tensors summed" in capsys.readouterr().out
    assert not out.exists()
    assert call(*both, "-o", out, "--device", "cpu") == 0
    capsys.readouterr()
    assert call(*both, "--check", out) == 0
    assert "differs from base + adapter by at most" in capsys.readouterr().out
    assert call(*both, "--check", out, "--json") == 0
    proof = json.loads(capsys.readouterr().out)
    assert proof["largest_difference"] < 1e-3 < proof["adapter_moved"]
    assert call("--model", tiny_folder, "--adapter", adapter, "--check", tiny_folder) == 1
    assert "hardly more like base + adapter" in capsys.readouterr().err
    assert call(*both, "--check", out, "-o", tmp_path / "other") == 2
    assert "leave -o out" in capsys.readouterr().err
    assert call(*both[:-2], "-o", tmp_path / "other") == 2
    assert "2 adapters have 1 weights" in capsys.readouterr().err
