"""Quantized folders: what is written, what is read back, and what other tools make of it."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from sightline.checkpoints.store import Store
from sightline.errors import SightlineError, UsageError
from sightline.models.families import FAMILIES
from sightline.models.quantization.checkpoint import quantize
from sightline.models.quantization.int4 import Int4Linear
from sightline.models.quantization.int8 import Int8Linear
from sightline.models.quantization.module import load_quantized, prepare, quantization_of, quantize_module
from sightline.models.quantization.verify import compare, verify
from sightline.models.quantization.weights import dequantize, unpack_int4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.make_model_folder(tmp_path / "model", dtype=torch.bfloat16)


def read(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    family = json.loads((folder / "config.json").read_text())["model_type"]
    kind = FAMILIES[family].model_class()
    return load_quantized(kind, kind.config_class.from_pretrained(str(folder)), folder, dtype=dtype)


def answer(module: Any) -> torch.Tensor:
    from sightline.checkpoints.verify import trial_inputs

    with torch.inference_mode():
        return module(**trial_inputs(module.config.to_dict())).logits[0]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_quantized_folder_answers_as_the_model_quantized_in_memory(
    family: str, kind: str, tied: bool, tmp_path: Path
) -> None:
    model = tiny.make_model_folder(tmp_path / "model", family, tied=tied)
    report = quantize(model, tmp_path / "out", kind)
    loaded = FAMILIES[family].model_class().from_pretrained(model, dtype=torch.float32).eval()
    expected = answer(loaded)
    counted = quantize_module(loaded, kind)
    assert (report.int8 + 1, report.int4) == (counted.int8, counted.int4)  # the head
    assert not [name for name, layer in loaded.named_modules() if isinstance(layer, torch.nn.Linear)]
    found = read(tmp_path / "out")
    assert torch.equal(answer(loaded), answer(found))
    near = compare(expected, answer(found))
    assert near.divergence < (0.05 if kind == "int8" else 2), near
    assert quantization_of(tmp_path / "out") == kind
    assert not found.training
    assert found.lm_head.weight is None  # laid out by the first use


def test_what_is_quantized_and_what_is_not(folder: Path, tmp_path: Path) -> None:
    report = quantize(folder, tmp_path / "out", "int4", group=64, skip=("*.layers.1.mlp.*",))
    before, after = Store(folder), Store(tmp_path / "out")
    assert (report.int4, report.kept) == (11, 3)
    text = "model.layers.0.mlp.down_proj.weight"
    assert after.shape(f"{text}_packed") == (64, 16)
    assert after.shape(f"{text}_scale") == (64, 2)
    assert after.get(f"{text}_shape").tolist() == [64, 128]
    vision = "visual.blocks.0.attn.qkv.weight"
    assert (after.dtype(vision), after.shape(f"{vision}_scale")) == ("I8", (96, 1))
    same = [
        "lm_head.weight",
        "model.embed_tokens.weight",
        "visual.patch_embed.proj.weight",
    ]
    for name in [*same, text.replace("layers.0", "layers.1"), "model.norm.weight"]:
        assert torch.equal(before.get(name), after.get(name))
    settings = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert settings["format"] == "mixed-precision"
    assert len(settings["ignore"]) == 4
    assert report.bytes == after.bytes < report.bytes_before == before.bytes


def test_layers_whose_width_the_group_does_not_divide_keep_their_dtype(folder: Path, tmp_path: Path) -> None:
    report = quantize(folder, tmp_path / "out", "int4", group=128)
    assert (report.int4, report.kept) == (2, 12)  # only the down projections are 128 wide
    loaded = read(tmp_path / "out")
    assert isinstance(loaded.model.language_model.layers[0].mlp.down_proj, Int4Linear)
    assert isinstance(loaded.model.language_model.layers[0].mlp.up_proj, torch.nn.Linear)
    assert isinstance(loaded.lm_head, Int8Linear)
    counted = quantize_module(tiny.make_model("qwen2_5_vl"), "int4", group=128)
    assert len(counted.kept) == 12


def test_both_generations_of_names_find_their_place(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    renamed = {
        name.replace("visual.", "model.visual.").replace(
            "model.layers", "model.language_model.layers"
        ): tensor
        for name, tensor in tensors.items()
    }
    expected = quantize(folder, tmp_path / "new", "int4")
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    assert quantize(folder, tmp_path / "old", "int4").bytes == expected.bytes
    assert "model.visual.blocks.0.attn.qkv.weight_scale" in Store(tmp_path / "old")
    assert torch.equal(answer(read(tmp_path / "old")), answer(read(tmp_path / "new")))


def test_shards_files_and_permissions(folder: Path, tmp_path: Path) -> None:
    quantize(folder, tmp_path / "out", "int8", max_shard_size="100KB")
    out = tmp_path / "out"
    assert len(list(out.glob("model-*-of-*.safetensors"))) > 1
    assert (out / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert (out / "preprocessor_config.json").is_file()
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {
        stat.S_IMODE((folder / "preprocessor_config.json").stat().st_mode)
    }
    read(out)


def test_it_refuses(folder: Path, tmp_path: Path) -> None:
    for wrong in ({"kind": "int3"}, {"kind": "int4", "group": 48}, {"kind": "int8", "skip": ("nothing.*",)}):
        with pytest.raises(UsageError):
            quantize(folder, tmp_path / "out", **wrong)  # type: ignore[arg-type]
    with pytest.raises(SightlineError, match="no layer"):
        quantize(folder, tmp_path / "out", "int8", skip=("*",))
    assert not (tmp_path / "out").exists()
    quantize(folder, tmp_path / "out", "int8")
    with pytest.raises(SightlineError, match="quantized already"):
        quantize(tmp_path / "out", tmp_path / "again", "int8")
    assert quantization_of(folder) is None
    with pytest.raises(SightlineError, match="not a quantized model"):
        read(folder)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_damaged_weights_are_named(folder: Path, tmp_path: Path, kind: str) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    damaged = next(name for name in tensors if name.endswith("layers.1.mlp.down_proj.weight"))
    tensors[damaged][3, 5] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(SightlineError, match=f"{damaged} in .* holds nan"):
        quantize(folder, tmp_path / "out", kind)
    assert not (tmp_path / "out").exists()
    family = json.loads((folder / "config.json").read_text())["model_type"]
    module = FAMILIES[family].model_class().from_pretrained(folder, dtype=torch.float32)
    with pytest.raises(SightlineError, match=r"layers\.1\.mlp\.down_proj\.weight holds nan"):
        quantize_module(module, kind)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "lack model.*norm.weight"),
        (lambda t: t.pop("visual.blocks.0.attn.qkv.bias"), "lack the bias"),
        (lambda t: t.pop("visual.blocks.0.attn.qkv.weight"), "not the weight beside it"),
        (lambda t: t.pop("visual.blocks.0.attn.qkv.weight_scale"), "lacks their scale"),
        (lambda t: t.update({"visual.extra": torch.ones(1)}), "no place in the model"),
        (
            lambda t: t.update({"visual.blocks.0.attn.qkv.weight_scale": torch.ones(96, 2)}),
            "fits no group size",
        ),
        (
            lambda t: t.update({"visual.blocks.0.attn.qkv.weight": torch.ones(96, 31, dtype=torch.int8)}),
            "shape and dtype",
        ),
        (lambda t: t.update({"model.norm.weight": torch.ones(65)}), "does not have the shape"),
    ],
)
def test_loading_is_strict(folder: Path, tmp_path: Path, change: Any, message: str) -> None:
    quantize(folder, tmp_path / "out", "int8")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(SightlineError, match=message):
        read(tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [
        {"quant_method": "gptq"},
        {"config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int", "symmetric": False}}}},
        {"config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "symmetric": True}}}},
        {"config_groups": None},
    ],
)
def test_other_quantizations_are_named_and_refused(
    folder: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    quantize(folder, tmp_path / "out", "int8")
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= change
    path.write_text(json.dumps(config))
    with pytest.raises(SightlineError, match="quantized"):
        quantization_of(tmp_path / "out")


def test_prepare_lays_everything_out(folder: Path, tmp_path: Path) -> None:
    quantize(folder, tmp_path / "out", "int4")
    module = read(tmp_path / "out", torch.bfloat16)
    prepare(module)
    plain = [name for name, _ in module.named_buffers() if name.endswith(("proj.weight", "weight_packed"))]
    assert plain == []
    assert answer(module).isfinite().all()


def test_verify_finds_a_broken_folder(folder: Path, tmp_path: Path) -> None:
    quantize(folder, tmp_path / "out", "int8")
    assert verify(folder, tmp_path / "out").agreement > 0.8
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if name.endswith("_scale"):
            tensors[name] *= -3
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(SightlineError, match="no more like"):
        verify(folder, tmp_path / "out")


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_compressed_tensors_reads_the_same_numbers(family: str, kind: str, tmp_path: Path) -> None:
    """transformers with the library itself: every layer is found, and its weight is ours bit for bit."""
    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    from compressed_tensors.compressors import decompress_module

    model = tiny.make_model_folder(tmp_path / "model", family, dtype=torch.bfloat16)
    quantize(model, tmp_path / "out", kind, skip=("visual.blocks.1.*", "layers.1.self_attn.*"))
    theirs = FAMILIES[family].model_class().from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    modules = dict(theirs.named_modules())
    for name, layer in read(tmp_path / "out", torch.bfloat16).named_modules():
        other = modules.get(name)
        if name == "lm_head" or not isinstance(layer, (Int8Linear, Int4Linear, torch.nn.Linear)):
            continue
        if isinstance(layer, torch.nn.Linear):
            assert other is not None
            assert torch.equal(other.weight, layer.weight), name
            continue
        integers = (
            unpack_int4(layer.plain_weight()) if isinstance(layer, Int4Linear) else layer.plain_weight()
        )
        decompress_module(other)
        assert torch.equal(other.weight, dequantize(integers, layer.weight_scale, torch.bfloat16)), name


def test_a_quantized_folder_is_neither_merged_into_nor_trained(tmp_path: Path) -> None:
    from sightline.checkpoints.merge import merge
    from sightline.training.run import _check_float

    quantize(tiny.make_model_folder(tmp_path / "float", "qwen2_vl"), tmp_path / "small", "int8")
    with pytest.raises(SightlineError, match="is quantized, and an adapter"):
        merge(tmp_path / "small", tmp_path, tmp_path / "out")
    with pytest.raises(SightlineError, match="in int8, which cannot learn"):
        _check_float(tmp_path / "small")
    _check_float(tmp_path / "float")
