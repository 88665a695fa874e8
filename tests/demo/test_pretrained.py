"""What training saved is packed, shipped, and put back into the base without loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from demo.llama import as_language_model, make_llama, make_tokenizer
from demo.recipe import load_script
from sightline.demo.base_model import place
from sightline.demo.pretrained import ASSET, apply_pretrained, describe
from sightline.demo.template import VISION_TOKENS
from sightline.errors import SightlineError


def fresh() -> Any:
    tokenizer = make_tokenizer()
    llama = make_llama(len(tokenizer) - len(VISION_TOKENS))
    return place(as_language_model(llama), tokenizer)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """(adapter folder as the trainer writes it, the trained model), on a base rounded to bfloat16."""
    from peft import LoraConfig, get_peft_model

    folder = tmp_path_factory.mktemp("adapter")
    targets = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
    settings = LoraConfig(r=4, lora_alpha=12, target_modules=targets, modules_to_save=["visual"])
    model = get_peft_model(fresh().to(torch.bfloat16).float(), settings).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                drawn = torch.randn(parameter.shape, generator=generator) * 0.05
                # Values that bfloat16 holds, so that packing rounds nothing away.
                value = drawn if "lora" in name else parameter + drawn
                parameter.copy_(value.to(torch.bfloat16).float())
    model.save_pretrained(folder)
    return folder, model


@torch.no_grad()
def test_packed_and_put_back_is_the_trained_model(trained: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = trained
    packed = load_script("pack").pack(folder, tmp_path / "deep" / "packed.safetensors", {"steps": 7})
    assert {tensor.dtype for tensor in load_file(packed).values()} == {torch.bfloat16}
    restored = fresh()
    metadata = apply_pretrained(restored, packed)
    assert (metadata["r"], float(metadata["scale"])) == ("4", 3.0)
    assert json.loads(metadata["training"]) == {"steps": 7}
    merged = model.merge_and_unload()
    changed = 0
    before = dict(fresh().named_parameters())
    for (name, ours), (_, theirs) in zip(restored.named_parameters(), merged.named_parameters(), strict=True):
        # What was not trained stays as precise as it was.
        exact = (
            before[name] if "embed_tokens" in name or ("norm" in name and "visual" not in name) else theirs
        )
        torch.testing.assert_close(ours, exact, rtol=0, atol=1e-6, msg=name)
        changed += not torch.equal(ours, before[name])
    assert changed > 2 * 7


def test_files_that_do_not_fit_are_refused(trained: tuple[Path, Any], tmp_path: Path) -> None:
    packed = load_script("pack").pack(trained[0], tmp_path / "packed.safetensors", {})
    tensors, metadata = load_file(packed), describe(packed)
    bad = tmp_path / "bad.safetensors"

    save_file(tensors, bad, metadata={"format": "99"})
    with pytest.raises(SightlineError, match="format 1"):
        apply_pretrained(fresh(), bad)
    save_file({k: v for k, v in tensors.items() if "patch_embed" not in k}, bad, metadata=metadata)
    with pytest.raises(SightlineError, match="lacks 1 tensors"):
        apply_pretrained(fresh(), bad)
    save_file(tensors | {"visual.nothing.weight": torch.zeros(1)}, bad, metadata=metadata)
    with pytest.raises(SightlineError, match=r"changes model\.visual\.nothing"):
        apply_pretrained(fresh(), bad)
    save_file(tensors | {"visual.merger.ln_q.weight": torch.zeros(7)}, bad, metadata=metadata)
    with pytest.raises(SightlineError, match=r"ln_q\.weight is \(7,\)"):
        apply_pretrained(fresh(), bad)
    with pytest.raises(SightlineError, match="cannot read the pre-trained weights"):
        describe(tmp_path / "nowhere.safetensors")


def test_an_adapter_without_a_tower_is_not_packed(trained: tuple[Path, Any], tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    tensors = load_file(trained[0] / "adapter_model.safetensors")
    save_file({k: v for k, v in tensors.items() if "lora" in k}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_bytes((trained[0] / "adapter_config.json").read_bytes())
    with pytest.raises(SystemExit, match="no vision tower"):
        load_script("pack").pack(folder, tmp_path / "packed.safetensors", {})
    assert not (tmp_path / "packed.safetensors").exists()


def test_the_shipped_file_is_small_and_says_where_it_comes_from() -> None:
    metadata = describe()
    assert ASSET.stat().st_size < 8_200_000
    # A changed recipe has to be run again, or the weights are not what it makes.
    assert metadata["recipe"] == load_script("pack").recipe_hash()
    assert json.loads(metadata["training"])["samples"] > 1000
    shapes = {name: tuple(value.shape) for name, value in load_file(ASSET).items()}
    assert shapes["visual.merger.mlp.2.weight"] == (576, 768)
    assert sum(name.endswith("lora_A") for name in shapes) == 30 * 7
