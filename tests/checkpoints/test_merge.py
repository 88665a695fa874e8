"""Merging against PEFT itself: the merged model's logits, and merge_and_unload's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from sightline.checkpoints.merge import merge
from sightline.checkpoints.shards import parse_size
from sightline.checkpoints.store import Store
from sightline.checkpoints.verify import logits_of, trial_inputs
from sightline.errors import SightlineError

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e5, "mrope_section": [1, 1, 2]},
}
IDS = {"image_token_id": 190, "video_token_id": 191, "vision_start_token_id": 192, "vision_end_token_id": 193}
VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}


def make_base(
    folder: Path, *, family: str = "qwen2_5_vl", tied: bool = True, dtype: torch.dtype = torch.float32
) -> Any:
    torch.manual_seed(1)
    if family == "qwen2_5_vl":
        vision = {**VISION, "fullatt_block_indexes": [1]}
        config = Qwen2_5_VLConfig(text_config=TEXT, vision_config=vision, tie_word_embeddings=tied, **IDS)
        model: Any = Qwen2_5_VLForConditionalGeneration(config)
    else:
        text = {**TEXT, "head_dim": 8}
        vision = {**VISION, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
        model = Qwen3VLForConditionalGeneration(
            Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **IDS)
        )
    model.to(dtype).save_pretrained(folder)
    return type(model)


def make_adapter(base: Path, folder: Path, kind: Any, *, seed: int = 2, **settings: Any) -> None:
    """An adapter with every tensor moved off its start, trained modules included."""
    model = get_peft_model(kind.from_pretrained(base, dtype="auto"), LoraConfig(lora_alpha=16, **settings))
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            weight.data = weight.data + 0.2 * torch.randn_like(weight)
    model.save_pretrained(folder)


def difference(
    base: Path, adapter: Path, merged: Path, kind: Any, dtype: Any = torch.float32
) -> tuple[float, float]:
    """Largest difference of logits between PEFT and the merged model, and how far the adapter moved them."""
    inputs = trial_inputs(json.loads((base / "config.json").read_text()))
    plain = logits_of(kind.from_pretrained(base, dtype=dtype), inputs)
    adapted = logits_of(PeftModel.from_pretrained(kind.from_pretrained(base, dtype=dtype), adapter), inputs)
    found = logits_of(kind.from_pretrained(merged, dtype=dtype), inputs)
    return float((adapted - found).abs().max()), float((adapted - plain).abs().max())


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("rslora", [False, True])
def test_merged_model_answers_as_the_adapter_does(tmp_path: Path, family: str, rslora: bool) -> None:
    kind = make_base(tmp_path / "base", family=family)
    settings = {
        "target_modules": r".*language_model.*(q_proj|v_proj|down_proj)",
        "modules_to_save": ["visual"],
        "use_rslora": rslora,
        "r": 4,
        "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 6},
        "alpha_pattern": {"v_proj": 3},
    }
    make_adapter(tmp_path / "base", tmp_path / "adapter", kind, **settings)
    report = merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", verify=True)
    off, moved = difference(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", kind)
    assert off < 1e-5 < 0.05 < moved
    assert report.largest_difference is not None
    assert report.adapter_moved is not None
    assert report.largest_difference < 1e-5 < 0.05 < report.adapter_moved
    assert (report.adapted, report.untied) == (6, False)
    # Tied stays tied: the head is stored nowhere.
    assert set(Store(tmp_path / "out")) == set(Store(tmp_path / "base"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_merge_and_unload(tmp_path: Path, dtype: torch.dtype) -> None:
    kind = make_base(tmp_path / "base", dtype=dtype)
    make_adapter(tmp_path / "base", tmp_path / "adapter", kind, target_modules="all-linear", r=4)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    peft = PeftModel.from_pretrained(
        kind.from_pretrained(tmp_path / "base", dtype=dtype), tmp_path / "adapter"
    )
    peft.merge_and_unload().save_pretrained(tmp_path / "theirs")
    ours, theirs = Store(tmp_path / "out"), Store(tmp_path / "theirs")
    assert set(ours) == set(theirs)
    base = Store(tmp_path / "base")
    for name in ours:
        assert ours.dtype(name) == theirs.dtype(name) == base.dtype(name)
        # PEFT rounds the change to bfloat16 before it adds it; ours is rounded once, at the end.
        tolerance = 1e-6 if dtype == torch.float32 else 2**-7
        torch.testing.assert_close(ours.get(name), theirs.get(name), atol=tolerance, rtol=tolerance)


def test_bfloat16_is_rounded_once(tmp_path: Path) -> None:
    kind = make_base(tmp_path / "base", dtype=torch.bfloat16)
    make_adapter(tmp_path / "base", tmp_path / "adapter", kind, target_modules=["q_proj"], r=4)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    half = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_{}.weight"
    base, out = Store(tmp_path / "base"), Store(tmp_path / "out")
    name = "model.layers.0.self_attn.q_proj.weight"
    change = 4.0 * tensors[half.format("B")].double() @ tensors[half.format("A")].double()
    expected = base.get(name).double() + change
    # At most half a step of bfloat16 away from the true sum.
    assert ((out.get(name).double() - expected).abs() <= expected.abs() * 2**-8 + 1e-6).all()


def test_a_change_that_rounding_swallows_is_no_proof(tmp_path: Path) -> None:
    kind = make_base(tmp_path / "base", dtype=torch.bfloat16)
    make_adapter(tmp_path / "base", tmp_path / "adapter", kind, target_modules=["q_proj"], r=4)
    weights, path = tmp_path / "base/model.safetensors", tmp_path / "adapter/adapter_model.safetensors"
    large = {name: t.sign() if "q_proj" in name else t for name, t in load_file(weights).items()}
    save_file(large, weights, metadata={"format": "pt"})
    save_file({name: 0.01 * tensor for name, tensor in load_file(path).items()}, path)
    with pytest.raises(SightlineError, match="hardly more like base . adapter than the base"):
        merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", verify=True)


def test_old_and_new_key_names_meet(tmp_path: Path) -> None:
    kind = make_base(tmp_path / "base")
    make_adapter(
        tmp_path / "base", tmp_path / "adapter", kind, target_modules=["q_proj"], modules_to_save=["visual"]
    )
    file = tmp_path / "adapter/adapter_model.safetensors"
    old = {
        name.replace("model.language_model.layers", "model.layers").replace("model.visual", "visual"): tensor
        for name, tensor in load_file(file).items()
    }
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "new")
    save_file({name.removeprefix("base_model.model."): tensor for name, tensor in old.items()}, file)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "old")
    assert (tmp_path / "new/model.safetensors").read_bytes() == (
        tmp_path / "old/model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
)
def test_a_tied_model_is_untied_when_one_end_was_trained(tmp_path: Path, settings: dict[str, Any]) -> None:
    kind = make_base(tmp_path / "base")
    make_adapter(tmp_path / "base", tmp_path / "adapter", kind, **settings)
    report = merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    off, moved = difference(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", kind)
    assert report.untied
    assert off < 1e-5 < moved


def test_fan_in_fan_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50)).save_pretrained(
        tmp_path / "base"
    )
    settings = {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}
    make_adapter(tmp_path / "base", tmp_path / "adapter", GPT2LMHeadModel, **settings)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    off, moved = difference(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", GPT2LMHeadModel)
    assert off < 1e-5 < moved


def test_shards_and_index(tmp_path: Path) -> None:
    kind = make_base(tmp_path / "base")
    make_adapter(tmp_path / "base", tmp_path / "adapter", kind, target_modules=["q_proj"])
    whole = merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "whole")
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "cut", max_shard_size="30KB")
    one, many = Store(tmp_path / "whole"), Store(tmp_path / "cut")
    assert len(list((tmp_path / "cut").glob("model-*-of-*.safetensors"))) > 3
    assert many.bytes == one.bytes == whole.bytes
    assert all(torch.equal(one.get(name), many.get(name)) for name in one)
    kind.from_pretrained(tmp_path / "cut")
    # A merged, sharded folder is a base like any other.
    merge(tmp_path / "cut", tmp_path / "adapter", tmp_path / "twice")


def test_companion_files(tmp_path: Path) -> None:
    kind = make_base(tmp_path / "base")
    make_adapter(tmp_path / "base", tmp_path / "adapter", kind, target_modules=["q_proj"])
    files = {
        "base/tokenizer.json": "base",
        "base/added_tokens.json": "base",
        "base/vocab.json": "base",
        "base/preprocessor_config.json": "base",
        "base/chat_template.json": "base",
        "adapter/tokenizer.json": "adapter",
        "adapter/preprocessor_config.json": "adapter",
        "adapter/optimizer.pt": "adapter",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert (tmp_path / "out/tokenizer.json").read_text() == "adapter"
    assert (tmp_path / "out/preprocessor_config.json").read_text() == "adapter"
    assert (tmp_path / "out/chat_template.json").read_text() == "base"
    # The base's other tokenizer files belong to its tokenizer, not to the adapter's.
    absent = {"added_tokens.json", "vocab.json", "optimizer.pt", "adapter_config.json"}
    assert not absent & {path.name for path in (tmp_path / "out").iterdir()}
    assert (tmp_path / "out/generation_config.json").is_file()


def edit_settings(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def edit_tensors(folder: Path, change: Any) -> None:
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


def rename_one(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("layers.1", "layers.7"): tensor for name, tensor in tensors.items()}


def widen_one(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(99, t.shape[1]) if "lora_B" in name else t for name, t in tensors.items()}


def halve(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "lora_B" not in name}


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda folder: edit_settings(folder, use_dora=True), "DoRA"),
        (lambda folder: edit_settings(folder, peft_type="LOHA"), "LOHA"),
        (lambda folder: edit_settings(folder, init_lora_weights="pissa"), "pissa"),
        (lambda folder: edit_settings(folder, r=5), "rank 8.*says 5"),
        (lambda folder: edit_tensors(folder, rename_one), r"layers\.7.*does not have"),
        (lambda folder: edit_tensors(folder, widen_one), "99x32.*32x32"),
        (lambda folder: edit_tensors(folder, halve), "other half is missing"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "not an adapter folder"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "not readable JSON"),
        (lambda folder: edit_settings(folder, lora_alpha="x"), "lora_alpha must be a number, not 'x'"),
        (lambda folder: edit_settings(folder, lora_alpha=None), "lora_alpha must be a number, not None"),
        (lambda folder: edit_settings(folder, r=0), "r must be a whole number of 1 or more, not 0"),
        (lambda folder: edit_settings(folder, r=True), "r must be a whole number of 1 or more, not True"),
        (lambda folder: edit_settings(folder, rank_pattern=[1]), "rank_pattern must be an object"),
        (
            lambda folder: edit_settings(folder, alpha_pattern={"q_proj": "y"}),
            "a value of alpha_pattern must be",
        ),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\x10" * 40), "cut off or not"),
    ],
)
def test_faults_are_found_before_anything_is_written(tmp_path: Path, fault: Any, words: str) -> None:
    kind = make_base(tmp_path / "base")
    make_adapter(tmp_path / "base", tmp_path / "adapter", kind, target_modules=["q_proj"])
    fault(tmp_path / "adapter")
    with pytest.raises(SightlineError, match=words):
        merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}


def test_an_existing_output_is_left_alone(tmp_path: Path) -> None:
    kind = make_base(tmp_path / "base")
    make_adapter(tmp_path / "base", tmp_path / "adapter", kind, target_modules=["q_proj"])
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    with pytest.raises(SightlineError, match="already exists"):
        merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize(("size", "bytes_"), [("5GB", 5 * 10**9), ("2GiB", 2**31), ("1.5 kb", 1500), (7, 7)])
def test_sizes(size: str | int, bytes_: int) -> None:
    assert parse_size(size) == bytes_


@pytest.mark.parametrize("size", ["", "five", "5 apples", "-1GB", "0"])
def test_sizes_that_are_none(size: str) -> None:
    with pytest.raises(SightlineError, match="not a size"):
        parse_size(size)
