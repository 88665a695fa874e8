"""LoRA adapters between PEFT and MindSpeed-MM, and what PEFT then computes with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_parts import FAMILIES, make_layout, rank_file
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import make_model_folder

from sightline.checkpoints.megatron.check import verify_lora
from sightline.checkpoints.megatron.lora_convert import lora_hf_to_mm, lora_mm_to_hf
from sightline.checkpoints.names import OLD, canonical
from sightline.checkpoints.verify import load_plain, logits_of, trial_inputs
from sightline.errors import SightlineError, UsageError

TARGETS = (
    r".*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)"
)


def make(root: Path, family: str = "qwen2_5_vl", **settings: Any) -> Path:
    make_model_folder(root / "base", family)
    options = {"target_modules": TARGETS, "r": 4, "lora_alpha": 12, "init_lora_weights": False, **settings}
    torch.manual_seed(7)
    get_peft_model(load_plain(root / "base"), LoraConfig(**options)).save_pretrained(root / "lora")
    return root / "lora"


def by_canonical(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "adapter_model.safetensors")
    return {canonical(name): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_there_and_back_and_peft_computes_the_same(tmp_path: Path, family: str) -> None:
    adapter, base = make(tmp_path, family), tmp_path / "base"
    inputs = trial_inputs(json.loads((base / "config.json").read_text()))
    expected = logits_of(PeftModel.from_pretrained(load_plain(base), adapter), inputs)
    plain = logits_of(load_plain(base), inputs)
    for number, layout in enumerate(
        (
            make_layout("2", "2", canonical=True),
            make_layout("1,1", "2,0", 2, canonical=True),
            make_layout("[[0,1],[1,0]]", "[[1,1],[0,0]]", 2, 1, canonical=True),
        )
    ):
        mm, back = tmp_path / f"mm{number}", tmp_path / f"back{number}"
        lora_hf_to_mm(adapter, base, mm, layout)
        lora_mm_to_hf(mm, base, back, layout, alpha=12)
        ours, theirs = by_canonical(back), by_canonical(adapter)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert verify_lora(adapter, mm, base, layout) == verify_lora(back, mm, base, layout) == len(ours)
    found = logits_of(PeftModel.from_pretrained(load_plain(base), back), inputs)
    assert torch.equal(found, expected)
    assert (plain - expected).abs().max() > 0.1


def test_names_and_cuts_on_disk(tmp_path: Path) -> None:
    adapter = make(tmp_path)
    lora_hf_to_mm(adapter, tmp_path / "base", tmp_path / "mm", make_layout("1,1", "2,0", 2, canonical=True))
    one, two = (rank_file(tmp_path / "mm", f"mp_rank_0{rank}_001")["model"] for rank in range(2))
    stored = by_canonical(adapter)
    layer = "text_decoder.decoder.layers.0."
    theirs = "text.layers.1."
    for ours, name, side, dim in (
        ("self_attention.q_proj", "self_attn.q_proj", "B", 0),
        ("mlp.up_proj", "mlp.up_proj", "B", 0),
        ("self_attention.linear_proj", "self_attn.o_proj", "A", 1),
        ("mlp.linear_fc2", "mlp.down_proj", "A", 1),
    ):
        key = f"{layer}{ours}.lora_{side}.default.weight"
        whole = stored[f"{theirs}{name}.lora_{side}.weight"]
        assert torch.equal(torch.cat([one[key], two[key]], dim), whole)
        other = "B" if side == "A" else "A"
        key = f"{layer}{ours}.lora_{other}.default.weight"
        assert torch.equal(one[key], stored[f"{theirs}{name}.lora_{other}.weight"])
        assert torch.equal(one[key], two[key])
    assert all(".lora_" in name for name in one)


def test_old_names_on_demand(tmp_path: Path) -> None:
    adapter, layout = make(tmp_path), make_layout("2", "2", canonical=True)
    lora_hf_to_mm(adapter, tmp_path / "base", tmp_path / "mm", layout)
    lora_mm_to_hf(tmp_path / "mm", tmp_path / "base", tmp_path / "old", layout, alpha=12, names=OLD)
    names = set(load_file(tmp_path / "old/adapter_model.safetensors"))
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    assert "base_model.model.visual.blocks.1.attn.qkv.lora_B.weight" in names


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "uses DoRA, which MindSpeed-MM has no place for"),
        ({"use_rslora": True}, "has use_rslora, but MindSpeed-MM knows one"),
        ({"rank_pattern": {"q_proj": 2}}, "has rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "has alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "which is no LoRA of a linear map"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "which is no LoRA of a linear map"),
    ],
)
def test_adapters_that_have_no_place(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    adapter = make(tmp_path, **{"target_modules": ["q_proj"], **settings})
    with pytest.raises(SightlineError, match=words):
        lora_hf_to_mm(adapter, tmp_path / "base", tmp_path / "mm", make_layout("2", "2", canonical=True))
    assert not (tmp_path / "mm").exists()


def test_what_else_is_refused(tmp_path: Path) -> None:
    adapter, base = make(tmp_path), tmp_path / "base"
    layout = make_layout("1,1", "2,0", 2, canonical=True)
    with pytest.raises(UsageError, match="canonical mode.*--canonical"):
        lora_hf_to_mm(adapter, base, tmp_path / "mm", make_layout("2", "2"))
    lora_hf_to_mm(adapter, base, tmp_path / "mm", layout)
    with pytest.raises(UsageError, match="--lora-alpha is needed"):
        lora_mm_to_hf(tmp_path / "mm", base, tmp_path / "out", layout, alpha=None)
    for other in (make_layout("2", "2", canonical=True), make_layout("1,1", "2,0", canonical=True)):
        with pytest.raises(SightlineError, match="give --pp-llm, --pp-vit and --tp as it was trained"):
            lora_mm_to_hf(tmp_path / "mm", base, tmp_path / "out", other, alpha=1)
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    half = next(name for name in tensors if "lora_B" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != half}, file)
    with pytest.raises(SightlineError, match="the adapter has only lora_A of"):
        lora_hf_to_mm(adapter, base, tmp_path / "other", layout)
    save_file({**tensors, half: torch.ones(3, 4)}, file)
    with pytest.raises(SightlineError, match=r"lora_B of .* is \[3, 4\], but the layer is"):
        lora_hf_to_mm(adapter, base, tmp_path / "other", layout)
    shutil.rmtree(tmp_path / "mm/release/mp_rank_01_001")
    with pytest.raises(SightlineError, match="lacks mp_rank_01_001"):
        lora_mm_to_hf(tmp_path / "mm", base, tmp_path / "out", layout, alpha=1)
