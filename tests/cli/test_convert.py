"""The convert command: both spellings, what it prints, how it fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from megatron_parts import assert_same, make_config, make_folder
from peft import LoraConfig, get_peft_model
from tiny import make_model_folder

from sightline.checkpoints.verify import load_plain
from sightline.cli.app import main


def call(*arguments: str | Path | int) -> int:
    with pytest.raises(SystemExit) as left:
        main(["convert", *map(str, arguments)])
    return int(left.value.code or 0)


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    make_folder(tmp_path / "hf", make_config(tied=True))
    return tmp_path / "hf"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_there_and_back(hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = make_folder(tmp_path / "same", make_config(tied=True))
    mm, one, back = tmp_path / "mm", tmp_path / "one", tmp_path / "back"
    given = ("--hf-dir", hf, "-o", mm, "--tp", 2, "--pp-llm", "1,3", "--pp-vit", "4,0", "--verify")
    assert call("hf-to-mm", *given) == 0
    printed = capsys.readouterr().out
    assert "tensors in 4 files" in printed
    assert "tp 2, pp-llm [[1,3]], pp-vit [[4,0]]" in printed
    assert "every number is the original's" in printed
    assert call("resplit", "--mm-dir", mm, "-o", one, "--hf-dir", hf, "--verify") == 0
    assert "every number is the original's" in capsys.readouterr().out
    arguments = ("mm-to-hf", "--mm-dir", one, "--hf-dir", hf, "-o", back, "--names", "new", "--verify")
    assert call(*arguments, "--tp", 2) == 1
    assert "so --tp cannot be 2" in capsys.readouterr().err
    assert call(*arguments, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["tensors"], report["written"]) == (len(tensors), True)
    assert_same(back, tensors, "new")


def test_the_original_spelling(hf: Path, tmp_path: Path) -> None:
    ours = (
        "--hf-dir",
        hf,
        "-o",
        tmp_path / "ours",
        "--tp",
        2,
        "--pp-llm",
        "1,3",
        "--pp-vit",
        "4,0",
        "--canonical",
    )
    assert call("hf-to-mm", *ours) == 0
    theirs = (
        *("--cfg.mm_dir", tmp_path / "theirs", "--cfg.hf_config.hf_dir", hf),
        *("--cfg.parallel_config.llm_pp_layers", "[[1,3]]", "--cfg.parallel_config.vit_pp_layers", "[[4,0]]"),
        *("--cfg.parallel_config.tp_size", 2, "--cfg.parallel_config.ep_size", 1),
        *("--cfg.common_model_config.enable_canonical_hf_struct", "true", "--cfg.trust_remote_code", "false"),
    )
    assert call("Qwen2_5_VLConverter", "hf_to_mm", *theirs) == 0
    assert files(tmp_path / "ours") == files(tmp_path / "theirs")
    back = (
        *("--cfg.save_hf_dir", tmp_path / "back", "--cfg.mm_dir", tmp_path / "theirs"),
        *("--cfg.hf_config.hf_dir", hf, "--cfg.parallel_config.llm_pp_layers", "[1,3]"),
        *("--cfg.parallel_config.vit_pp_layers", "[4,0]", "--cfg.parallel_config.tp_size", 2),
    )
    assert call("Qwen2_5_VLConverter", "mm_to_hf", *back) == 0
    source = (
        "--cfg.source_dir",
        tmp_path / "theirs",
        "--hf-dir",
        hf,
        "--cfg.source_parallel_config.tp_size",
        2,
    )
    target = (
        *("--cfg.target_parallel_config.llm_pp_layers", "[2,2]"),
        *("--cfg.target_parallel_config.vit_pp_layers", "[4,0]", "--cfg.target_parallel_config.tp_size", 4),
    )
    flat = ("--cfg.source_parallel_config.llm_pp_layers", "[1,3]")
    assert call("resplit", *source, *flat, *target, "--cfg.target_dir", tmp_path / "anew") == 0
    assert len(list((tmp_path / "anew").rglob("*.pt"))) == 8
    wrong = ("--cfg.source_parallel_config.llm_pp_layers", "[2,2]")
    assert call("resplit", *source, *wrong, *target, "--cfg.target_dir", tmp_path / "no") == 1
    assert not (tmp_path / "no").exists()


def test_balanced_by_itself(hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("hf-to-mm", "--hf-dir", hf, "-o", tmp_path / "mm", "--pp", 3, "--auto", "--dry-run") == 0
    printed = capsys.readouterr()
    assert "model.json: text_decoder.pipeline_num_layers [" in printed.err
    assert "model.json: image_encoder.vision_encoder.pipeline_num_layers [" in printed.err
    assert "would hold" in printed.out
    assert not (tmp_path / "mm").exists()


def test_lora(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_model_folder(tmp_path / "base")
    settings = LoraConfig(target_modules=["q_proj"], r=4, lora_alpha=12, init_lora_weights=False)
    torch.manual_seed(0)
    get_peft_model(load_plain(base), settings).save_pretrained(tmp_path / "lora")
    cut = ("--model", base, "--tp", 2, "--pp-llm", "1,1")
    arguments = ("lora-hf-to-mm", "--adapter", tmp_path / "lora", *cut, "-o", tmp_path / "mm")
    assert call(*arguments) == 2
    assert "add --canonical" in capsys.readouterr().err
    assert call(*arguments, "--canonical", "--verify") == 0
    assert "Train with --lora-r 4 --lora-alpha 12." in capsys.readouterr().out
    arguments = ("lora-mm-to-hf", "--mm-dir", tmp_path / "mm", *cut, "-o", tmp_path / "back")
    assert call(*arguments) == 2
    assert "--lora-alpha is needed" in capsys.readouterr().err
    assert call(*arguments, "--lora-alpha", 12, "--verify") == 0
    written = json.loads((tmp_path / "back/adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"]) == (4, 12)


def test_wan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diffusers = pytest.importorskip("diffusers")
    sizes = {"num_attention_heads": 1, "attention_head_dim": 12, "text_dim": 4, "freq_dim": 4, "ffn_dim": 8}
    model = diffusers.WanTransformer3DModel(in_channels=2, out_channels=2, num_layers=3, **sizes)
    model.save_pretrained(tmp_path / "wan")
    arguments = ("hf-to-mm", "--hf-dir", tmp_path / "wan", "-o", tmp_path / "mm", "--verify")
    for wrong in (("--tp", 2), ("--canonical",), ("--pp-vit", "1")):
        assert call(*arguments, *wrong) == 2
        assert "means nothing for Wan" in capsys.readouterr().err
    assert call("WanConverter", *arguments, "--pp", "1,2") == 0
    assert "pp [[1,2]]" in capsys.readouterr().out
    resplit = ("resplit", "--mm-dir", tmp_path / "mm", "-o", tmp_path / "anew", "--verify")
    assert call(*resplit, "--pp", 3, "--auto") == 0
    assert "pp [[1,1,1]]" in capsys.readouterr().out
    back = ("mm-to-hf", "--mm-dir", tmp_path / "anew", "--hf-dir", tmp_path / "wan", "-o", tmp_path / "back")
    assert call(*back, "--verify") == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--tp", "8"), 2, "--tp 8 does not divide num_key_value_heads 4; 1, 2, 4 do"),
        (("--pp-llm", "1,2"), 2, "holds 3 layers, but the model has 4"),
        (("--pp-vit", "4,0"), 2, "--pp-vit is given without --pp-llm"),
        (("--pp", "2"), 2, "--pp needs --auto"),
        (("--auto",), 2, "--auto needs --pp"),
        (("--auto", "--pp", "2", "--pp-llm", "1,3"), 2, "leave --pp-llm and --pp-vit out"),
        (("--cfg.parallel_config.ep_size", "2"), 2, "have no experts"),
        (("--cfg.parallel_config.audio_pp_layers", "[[1]]"), 2, "models with sound"),
        (("--cfg.save_vit_only", "true"), 2, "save_vit_only is not built"),
        (("--cfg.trust_remote_code", "true"), 2, "nothing of a checkpoint is run"),
        (("--cfg.common_model_config.model_prefix", "x."), 2, "model_prefix x. is not known"),
        (("--cfg.common_model_config.enable_canonical_hf_struct", "maybe"), 2, "neither true nor false"),
        (("--resume", "--hf-dir", "nowhere"), 1, "nowhere is not a folder"),
    ],
)
def test_failures(
    hf: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call("hf-to-mm", "--hf-dir", hf, "-o", tmp_path / "mm", *arguments) == code
    errors = capsys.readouterr().err.strip()
    assert words in errors.replace("\n", " ")
    assert "Traceback" not in errors
    assert not (tmp_path / "mm").exists()
