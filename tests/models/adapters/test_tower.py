"""An adapter's own tower: the numbers of a merged checkpoint, and nothing twice that need not be."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_folders import adapter_of, make_adapter
from safetensors.torch import load_file, save_file
from tiny import make_model_folder

from sightline.checkpoints.merge import merge
from sightline.checkpoints.names import canonical
from sightline.checkpoints.store import Store
from sightline.models.adapters.places import Places
from sightline.models.adapters.reading import read_adapter
from sightline.models.adapters.tower import adapted_tower
from sightline.models.fast.linear import convert_linear
from sightline.models.fast.vision import rewrite_tower
from sightline.models.loading import load_model

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


def towers(
    base: Path, adapter: Path, *, dtype: str = "fp32", rewritten: bool = False
) -> tuple[Any, Any, int]:
    """The base's model, the adapter's tower and its bytes."""
    model = load_model(base, device="cpu", dtype=dtype)
    reading = read_adapter(adapter, Places.of(model.module, base), max_rank=64)
    visual = model.module.model.visual
    if rewritten:
        rewrite_tower(visual, convert_linear)
    device = torch.device("cpu")
    tower, size = adapted_tower(
        visual, reading, Store(base), device=device, dtype=model.dtype, rewritten=rewritten
    )
    return model.module, tower, size


def features(module: Any, tower: Any, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    grids = torch.tensor([[1, 6, 10], [2, 4, 4]])
    pixels = torch.randn(92, 3 * 2 * 14 * 14, generator=generator).to(dtype)
    own = module.model.visual
    module.model.visual = tower
    with torch.inference_mode():
        output = module.model.get_image_features(pixels, grids, return_dict=True)
    module.model.visual = own
    levels = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
    return [torch.cat(level) for level in levels]


@pytest.mark.parametrize("kind", ["sight", "whole"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_its_weights_are_those_of_the_merged_model(
    tmp_path: Path, family: str, kind: str, dtype: torch.dtype
) -> None:
    base = make_model_folder(tmp_path / "base", family, dtype=dtype)
    adapter = adapter_of(base, kind)
    _, tower, _ = towers(base, adapter, dtype="fp32" if dtype == torch.float32 else "bf16")
    merge(base, adapter, tmp_path / "merged")
    merged = Store(tmp_path / "merged")
    expected = {canonical(name): merged.get(name) for name in merged if canonical(name).startswith("visual.")}
    found = {f"visual.{name}": parameter for name, parameter in tower.named_parameters()}
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, expected[name].reshape(parameter.shape)), name


@pytest.mark.parametrize("kind", ["sight", "whole"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_rewritten_tower_sees_what_the_merged_one_sees(tmp_path: Path, family: str, kind: str) -> None:
    base = make_model_folder(tmp_path / "base", family)
    adapter = adapter_of(base, kind)
    module, tower, _ = towers(base, adapter, rewritten=True)
    merge(base, adapter, tmp_path / "merged")
    merged = load_model(tmp_path / "merged", device="cpu", dtype="fp32").module
    before = features(module, module.model.visual)
    for found, expected, own in zip(
        features(module, tower), features(merged, merged.model.visual), before, strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert (own - expected).abs().max() > 0.1
    # The base's own is as it was.
    for found, own in zip(features(module, module.model.visual), before, strict=True):
        assert torch.equal(found, own)


@pytest.mark.parametrize("rewritten", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_does_not_change_is_the_bases(tmp_path: Path, family: str, rewritten: bool) -> None:
    base = make_model_folder(tmp_path / "base", family)
    adapter = make_adapter(
        base,
        tmp_path / "adapter",
        target_modules=r".*visual\.blocks\.1\.(attn\.qkv|mlp\.(fc1|up_proj|linear_fc2))",
        r=2,
    )
    module, tower, size = towers(base, adapter, rewritten=rewritten)
    visual = module.model.visual
    assert tower.merger is visual.merger
    assert tower.patch_embed is visual.patch_embed
    assert tower.blocks[0] is visual.blocks[0]
    assert tower.blocks[1].norm1 is visual.blocks[1].norm1
    assert tower.blocks[1].attn.proj is visual.blocks[1].attn.proj
    assert tower.blocks[1].attn.qkv is not visual.blocks[1].attn.qkv
    assert tower.blocks[1].mlp is not visual.blocks[1].mlp
    own = {id(parameter) for parameter in visual.parameters()}
    mine = sum(parameter.nbytes for parameter in tower.parameters() if id(parameter) not in own)
    assert 0 < mine <= size < sum(parameter.nbytes for parameter in visual.parameters()) / 2


def test_bfloat16_towers_share_packed_weights(tmp_path: Path) -> None:
    base = make_model_folder(tmp_path / "base", "qwen2_5_vl", dtype=torch.bfloat16)
    adapter = adapter_of(base, "sight")
    module, tower, _ = towers(base, adapter, dtype="bf16", rewritten=True)
    merge(base, adapter, tmp_path / "merged")
    merged = load_model(tmp_path / "merged", device="cpu", dtype="bf16").module
    rewrite_tower(merged.model.visual, convert_linear)
    found = features(module, tower, torch.bfloat16)
    expected = features(merged, merged.model.visual, torch.bfloat16)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert tower.blocks[0].mlp is module.model.visual.blocks[0].mlp


def test_a_base_with_names_of_either_generation(tmp_path: Path) -> None:
    base = make_model_folder(tmp_path / "base", "qwen2_vl")
    adapter = adapter_of(base, "sight")
    _, expected, _ = towers(base, adapter)
    other = Path(shutil.copytree(base, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    assert "visual.merger.ln_q.weight" in tensors  # as the family was published
    renamed = {
        name.replace("visual.", "model.visual.").replace(
            "model.layers.", "model.language_model.layers."
        ): tensor
        for name, tensor in tensors.items()
    }
    save_file(renamed, other / "model.safetensors", metadata={"format": "pt"})
    _, found, _ = towers(other, adapter)
    for ours, theirs in zip(found.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_tower_in_8_bit_gives_its_changed_layers_back_as_floats(tmp_path: Path) -> None:
    from sightline.models.quantization.checkpoint import quantize

    base = make_model_folder(tmp_path / "base", "qwen2_5_vl")
    quantize(base, tmp_path / "int8", "int8")
    adapter = adapter_of(base, "sight")
    _, plain, _ = towers(base, adapter, rewritten=True)
    module, found, _ = towers(tmp_path / "int8", adapter, rewritten=True)
    levels = zip(features(module, found), features(module, plain), strict=True)
    assert all((ours - theirs).abs().mean() < 0.1 * theirs.abs().mean() for ours, theirs in levels)
