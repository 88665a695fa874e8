"""The authors' own files give the models that they were written from, every number of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import original_wan
import pytest
import torch
from safetensors.torch import load_file, save_file

from sightline.errors import SightlineError, UsageError
from sightline.video.components import load_components
from sightline.video.loading import original_transformer, original_vae
from sightline.video.loading.load import open_transformer, open_vae
from sightline.video.loading.tensors import open_tensors

CPU = {"device": "cpu", "dtype": "fp32"}
FILE = "diffusion_pytorch_model.safetensors"
VAE, TEXT = "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return original_wan.make_original_folder(tmp_path_factory.mktemp("original") / "Wan2.1-T2V-small")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """One that a test may break."""
    return Path(shutil.copytree(made, tmp_path / "Wan2.1-T2V-small"))


def same(model: Any, other: Any) -> bool:
    one, two = model.state_dict(), other.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_folder_of_the_original_is_known_by_itself(made: Path) -> None:
    parts = load_components(made, **CPU)
    assert parts.name == "Wan2.1-T2V-small"
    assert same(parts.transformer, original_wan.make_transformer())
    assert same(parts.vae, original_wan.make_vae())
    assert same(parts.text_encoder, original_wan.make_text_encoder())
    assert len(parts.tokenizer) == len(original_wan.WORDS)
    assert parts.transformer.config.num_attention_heads == 2
    assert parts.scheduler.config.use_flow_sigmas


def test_sizes_come_from_the_shapes_without_a_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    config = load_components(folder, **CPU).transformer.config
    given = original_wan.make_transformer().config
    assert {name: config[name] for name in given if not name.startswith("_")} == {
        name: value if name != "patch_size" else list(value)
        for name, value in given.items()
        if not name.startswith("_")
    }


@pytest.mark.parametrize(("width", "ffn", "layers", "heads"), [(1536, 8960, 30, 12), (5120, 13824, 40, 40)])
def test_the_published_sizes_are_read_off_their_shapes(
    tmp_path: Path, width: int, ffn: int, layers: int, heads: int
) -> None:
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        model = WanTransformer3DModel(num_attention_heads=heads, ffn_dim=ffn, num_layers=layers)
    # A file of the right length without its bytes on the disk.
    header, place = {}, 0
    names = {ours: theirs for theirs, ours in original_wan.transformer_names(layers).items()}
    for name, value in model.state_dict().items():
        size = value.numel() * 2
        header[names[name]] = {
            "dtype": "BF16",
            "shape": list(value.shape),
            "data_offsets": [place, place + size],
        }
        place += size
    text = json.dumps(header).encode()
    with (tmp_path / "wan.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + place)
    tensors = original_transformer.to_diffusers(open_tensors(tmp_path / "wan.safetensors"))
    config = original_transformer.config_of(tensors)
    assert config["num_attention_heads"] == heads
    assert config["num_layers"] == layers
    assert config["ffn_dim"] == ffn
    assert config["text_dim"] == 4096
    assert {name: tuple(tensors.shape(name)) for name in tensors.entries} == {
        name: tuple(value.shape) for name, value in model.state_dict().items()
    }


def test_names_are_those_that_diffusers_makes_of_them(tmp_path: Path) -> None:
    from diffusers.loaders import single_file_utils as theirs

    state = original_wan.transformer_state(original_wan.make_transformer())
    save_file(state, tmp_path / "a.safetensors")
    ours = original_transformer.to_diffusers(open_tensors(tmp_path / "a.safetensors"))
    expected = theirs.convert_wan_transformer_to_diffusers(dict(state))
    assert set(ours.entries) == set(expected)
    assert all(torch.equal(ours.read(name), value) for name, value in expected.items())

    state = original_wan.vae_state(original_wan.make_vae())
    torch.save(state, tmp_path / "b.pth")
    ours = original_vae.to_diffusers(open_tensors(tmp_path / "b.pth"))
    expected = theirs.convert_wan_vae_to_diffusers(dict(state))
    assert set(ours.entries) == set(expected)
    assert all(torch.equal(ours.read(name), value) for name, value in expected.items())


def test_a_transformer_in_shards(folder: Path) -> None:
    state = load_file(folder / FILE)
    names = sorted(state)
    shards = {"a-00001-of-00002.safetensors": names[::2], "a-00002-of-00002.safetensors": names[1::2]}
    for file, inside in shards.items():
        save_file({name: state[name] for name in inside}, folder / file)
    index = {"weight_map": {name: file for file, inside in shards.items() for name in inside}}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (folder / FILE).unlink()
    assert same(load_components(folder, **CPU).transformer, original_wan.make_transformer())
    (folder / "a-00002-of-00002.safetensors").unlink()
    with pytest.raises(SightlineError, match="lacks the shard a-00002-of-00002.safetensors"):
        load_components(folder, **CPU)


def test_each_part_by_its_option(made: Path, tmp_path: Path) -> None:
    parts = load_components(
        None,
        transformer_file=made / FILE,
        vae_file=made / VAE,
        text_encoder_file=made / TEXT,
        tokenizer=made / "google" / "umt5-xxl",
        **CPU,
    )
    assert same(parts.transformer, original_wan.make_transformer())
    other = original_wan.make_transformer(seed=1)
    other.save_pretrained(tmp_path / "transformer")
    (tmp_path / "transformer" / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(SightlineError, match="has no config.json of its model"):
        load_components(made, transformer_file=tmp_path / "transformer", **CPU)
    (tmp_path / "config.json").rename(tmp_path / "transformer" / "config.json")
    parts = load_components(made, transformer_file=tmp_path / "transformer", **CPU)
    assert same(parts.transformer, other)
    # diffusers' names in a file alone, and behind another program's prefix.
    named = {f"model.diffusion_model.{name}": value for name, value in other.state_dict().items()}
    save_file(named, tmp_path / "one.safetensors")
    assert same(
        load_components(made, transformer_file=tmp_path / "one.safetensors", **CPU).transformer, other
    )
    with pytest.raises(UsageError, match="vae_file as well"):
        load_components(None, transformer_file=made / FILE, **CPU)
    with pytest.raises(UsageError, match="nowhere.pth does not exist"):
        load_components(made, vae_file=tmp_path / "nowhere.pth", **CPU)


def test_files_are_read_in_the_dtype_asked_for(made: Path) -> None:
    parts = load_components(made, device="cpu", dtype="bf16")
    assert parts.transformer.patch_embedding.weight.dtype is torch.bfloat16
    assert parts.transformer.scale_shift_table.dtype is torch.float32
    assert parts.text_encoder.shared.weight.dtype is torch.bfloat16
    assert parts.vae.dtype is torch.float32


@pytest.mark.parametrize("missing", [VAE, TEXT, "google"])
def test_a_file_that_is_not_there_is_named(folder: Path, missing: str) -> None:
    path = folder / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(SightlineError, match=f"has no {missing}.*download it again, or give"):
        load_components(folder, **CPU)


def test_an_old_or_foreign_config_is_refused_with_both_numbers(folder: Path) -> None:
    for field, value, text in (
        ("num_layers", 30, "num_layers 30, and the weights have 2"),
        ("dim", 1536, "dim 1536, and the weights are 256 wide"),
        ("num_heads", 7, "256 wide, which is not divided into 7 heads"),
        ("model_type", "i2v", "model_type i2v"),
    ):
        given = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(given | {field: value}))
        with pytest.raises(SightlineError, match=text):
            open_transformer(folder, torch.float32)
        (folder / "config.json").write_text(json.dumps(given))


def test_a_tensor_too_many_too_few_or_of_another_kind(folder: Path) -> None:
    state = load_file(folder / FILE)

    def changed(change: dict[str, Any], drop: str = "") -> None:
        save_file({**{name: value for name, value in state.items() if name != drop}, **change}, folder / FILE)

    zero = torch.zeros(3)
    for change, drop, text in (
        (
            {"blocks.0.strange.weight": zero},
            "",
            "blocks.0.strange.weight, which is no tensor of Wan's transformer",
        ),
        ({}, "blocks.1.ffn.2.bias", "lacks blocks.1.ffn.net.2.bias"),
        ({}, "head.head.weight", "has no tensor proj_out.weight"),
        ({"blocks.1.ffn.2.bias": zero}, "", r"blocks.1.ffn.net.2.bias is \[3\]"),
        ({"img_emb.proj.0.weight": zero}, "", "begins with a picture"),
        ({"vace_blocks.0.norm3.weight": zero}, "", "edits videos"),
        ({"blocks.0.ffn.0.weight": state["blocks.0.ffn.0.weight"].to(torch.int8)}, "", "int8.*quantized"),
        ({"blocks.5.ffn.0.bias": zero}, "", "num_layers 2, and the weights have 6"),
        ({"patch_embedding.weight": zero}, "", r"patch_embedding.weight is \[3\], and should have 5"),
    ):
        changed(change, drop)
        with pytest.raises(SightlineError, match=text):
            open_transformer(folder, torch.float32)


def test_another_vae_is_refused(folder: Path) -> None:
    state = torch.load(folder / VAE, weights_only=True)
    torch.save({**state, "conv2.weight": torch.zeros(48, 48, 1, 1, 1)}, folder / VAE)
    with pytest.raises(SightlineError, match="48 channels, and Wan2.1's VAE has 16"):
        open_vae(folder / VAE)
    torch.save({**state, "decoder.upsamples.3.residual.0.gamma": torch.zeros(1)}, folder / VAE)
    with pytest.raises(SightlineError, match="no tensor of Wan2.1's VAE"):
        open_vae(folder / VAE)


def test_both_names_of_one_tensor_are_one_too_many(folder: Path) -> None:
    state = load_file(folder / FILE)
    double = {**state, "proj_out.bias": state["head.head.bias"].clone()}
    save_file(double, folder / FILE)
    with pytest.raises(SightlineError, match="proj_out.bias, which is no tensor of Wan's transformer"):
        open_transformer(folder, torch.float32)


def test_a_width_that_published_heads_do_not_divide_needs_a_config(tmp_path: Path) -> None:
    from diffusers import WanTransformer3DModel

    odd = WanTransformer3DModel(
        num_attention_heads=3, attention_head_dim=64, num_layers=1, ffn_dim=8, text_dim=8
    )
    save_file(original_wan.transformer_state(odd), tmp_path / "odd.safetensors")
    with pytest.raises(SightlineError, match="192 wide, which is not divided into heads 128 wide"):
        open_transformer(tmp_path / "odd.safetensors", torch.float32)
    (tmp_path / "config.json").write_text('{"_class_name": "WanModel", "num_heads": 3}')
    assert open_transformer(tmp_path, torch.float32).model.config.attention_head_dim == 64
