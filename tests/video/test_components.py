"""A diffusers folder gives the parts that diffusers gives, or one sentence that says what is wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from wan_folder import make_wan_folder

from sightline.errors import SightlineError, UsageError
from sightline.video.components import load_components
from sightline.video.fingerprint import fingerprint

CPU = {"device": "cpu", "dtype": "fp32"}
WEIGHTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wan_folder(tmp_path_factory.mktemp("wan") / "wan")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """One that a test may break."""
    return Path(shutil.copytree(made, tmp_path / "wan"))


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(folder: Path, text: str, kind: type[Exception] = SightlineError, **options: Any) -> None:
    with pytest.raises(kind, match=text) as caught:
        load_components(folder, **{**CPU, **options})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_parts_are_those_of_diffusers(made: Path, dtype: str) -> None:
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import UMT5EncoderModel

    parts = load_components(made, device="cpu", dtype=dtype)
    assert (
        str(parts.dtype)
        == {"fp32": "torch.float32", "bf16": "torch.bfloat16", "fp16": "torch.float16"}[dtype]
    )
    expected = {
        "transformer": WanTransformer3DModel.from_pretrained(made / "transformer", torch_dtype=parts.dtype),
        "vae": AutoencoderKLWan.from_pretrained(made / "vae"),
        "text_encoder": UMT5EncoderModel.from_pretrained(made / "text_encoder", dtype=parts.dtype),
    }
    for name, model in expected.items():
        ours = getattr(parts, name)
        assert type(ours) is type(model)
        assert not ours.training
        one = {**ours.state_dict(), **dict(ours.named_buffers())}
        two = {**model.state_dict(), **dict(model.named_buffers())}
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert value.dtype is two[key].dtype, key
            assert torch.equal(value, two[key]), key
    assert type(parts.scheduler).__name__ == "UniPCMultistepScheduler"
    assert parts.tokenizer("a two moving left").input_ids[-1] == parts.tokenizer.eos_token_id


def test_auto_is_what_the_device_computes_in(made: Path) -> None:
    from sightline.hardware.accelerator import find

    parts = load_components(made, device="cpu")
    assert parts.dtype is find("cpu").preferred_dtype()
    assert parts.device == torch.device("cpu")
    assert (parts.name, parts.folder, parts.offload) == ("wan", made, "none")


def test_the_fingerprint_is_of_the_weights_as_they_were_loaded(made: Path) -> None:
    parts = load_components(made, **CPU)
    before = fingerprint(parts.transformer)
    with torch.no_grad():
        parts.transformer.proj_out.weight.zero_()
    assert parts.weights_fingerprint() == before != fingerprint(parts.transformer)
    assert load_components(made, cast_weights=True, **CPU).weights_fingerprint() == before


def test_arguments_that_mean_nothing(made: Path) -> None:
    refused(made, "offload must be none, model, group, not 'all'", UsageError, offload="all")
    refused(made, "dtype 'int4' is not one of", UsageError, dtype="int4")
    refused(made, "device 'tpu' is not", UsageError, device="tpu")
    with pytest.raises(UsageError, match="'scheduler' is no part that computes"):
        load_components(made, **CPU).on_device("scheduler").__enter__()


def test_a_name_of_a_hub_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(
        Path("Wan-AI/Wan2.1-T2V-14B-Diffusers"),
        "is no folder, and nothing is fetched from a hub; download Wan-AI/Wan2.1-T2V-14B-Diffusers there",
    )
    refused(tmp_path / "wan", "download Wan-AI/Wan2.1-T2V-1.3B-Diffusers there")
    refused(tmp_path, "no Wan model: it has neither model_index.json")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "is a file; give the model's folder")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"_class_name": "WanImageToVideoPipeline"}, "is of a WanImageToVideoPipeline"),
        ({"transformer_2": ["diffusers", "WanTransformer3DModel"]}, "second transformer.*Wan2.2"),
        ({"boundary_ratio": 0.875}, "second transformer"),
        ({"expand_timesteps": True}, "expand_timesteps"),
        ({"image_encoder": ["transformers", "CLIPVisionModel"]}, "names image_encoder, a part"),
        ({"vae": ["diffusers", "AutoencoderKL"]}, "names a AutoencoderKL as its vae"),
        ({"text_encoder": ["my_code", "Encoder"]}, "takes its text_encoder from my_code"),
        ({"transformer": None}, "names no transformer"),
        ({"scheduler": "UniPC"}, "names no scheduler"),
    ],
)
def test_what_is_not_run_is_refused_by_name(folder: Path, fields: dict[str, Any], text: str) -> None:
    change(folder / "model_index.json", **fields)
    refused(folder, text)


def test_what_newer_folders_say_of_absent_parts_is_no_part(folder: Path) -> None:
    change(
        folder / "model_index.json", transformer_2=[None, None], boundary_ratio=None, expand_timesteps=False
    )
    load_components(folder, **CPU)


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "transformer", "vae", "scheduler"])
def test_a_part_that_is_missing(folder: Path, part: str) -> None:
    shutil.rmtree(folder / part)
    refused(folder, f"has no folder {part}")
    (folder / part).mkdir()
    refused(folder, f"{folder / part}")


@pytest.mark.parametrize("part", sorted(WEIGHTS))
def test_weights_that_are_missing_cut_off_damaged_or_pickled(folder: Path, part: str) -> None:
    path = folder / part / WEIGHTS[part]
    whole = path.read_bytes()
    for content, text in (
        (whole[:-5], "is cut off"),
        (whole[:100], "cut off or not a safetensors file"),
        (b"", "cut off or not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"\xff" * 8 + whole[8:], "cut off or not a safetensors file"),
        (
            whole[:8] + b"{" * int.from_bytes(whole[:8], "little") + whole[-64:],
            "cannot be read as safetensors",
        ),
    ):
        path.write_bytes(content)
        refused(folder, text)
    path.unlink()
    path.mkdir()
    refused(folder, f"{part}")
    path.rmdir()
    torch.save({}, folder / part / "pytorch_model.bin")
    refused(folder, "pickled .bin files; save the model as safetensors")
    (folder / part / "pytorch_model.bin").unlink()
    refused(folder, "has no weights")


@pytest.mark.parametrize(
    ("part", "fields", "text"),
    [
        ("transformer", {"num_layers": 4}, "lacks blocks.3"),
        ("transformer", {"num_layers": 2}, "holds blocks.2.*and 2. more, which a WanTransformer3DModel"),
        ("transformer", {"ffn_dim": 64}, r"is \[32\], and the config asks for \[64\]"),
        ("transformer", {"text_dim": 17}, "config and weights are of two models"),
        ("transformer", {"num_attention_heads": "two"}, "makes no model"),
        ("transformer", {"in_channels": 36}, "image-to-video transformer .36 channels in, 4 out"),
        ("transformer", {"_class_name": "FluxTransformer2DModel"}, "here a WanTransformer3DModel is needed"),
        ("vae", {"base_dim": 8}, "config and weights are of two models"),
        ("vae", {"scale_factor_spatial": 8}, "scale_factor_spatial 8, but its stages make it 4"),
        ("vae", {"latents_mean": [0.0]}, "1 numbers in latents_mean for z_dim 4"),
        ("text_encoder", {"num_layers": 3}, "lacks encoder.block.2"),
        ("text_encoder", {"d_ff": 64}, "config and weights are of two models"),
        ("text_encoder", {"d_model": "wide"}, "makes no model"),
    ],
)
def test_a_config_that_does_not_fit_the_weights(
    folder: Path, part: str, fields: dict[str, Any], text: str
) -> None:
    change(folder / part / "config.json", **fields)
    refused(folder, text)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_config_that_cannot_be_read(folder: Path, part: str) -> None:
    (folder / part / "config.json").write_text("{")
    refused(folder, "config.json is not readable JSON")
    (folder / part / "config.json").write_text("[1]")
    refused(folder, "must hold a JSON object")


def test_parts_of_two_models_are_refused_with_both_numbers(made: Path, folder: Path, tmp_path: Path) -> None:
    import wan_folder
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    config = dict(WanTransformer3DModel.load_config(made / "transformer"))
    WanTransformer3DModel.from_config({**config, "text_dim": 24}).save_pretrained(tmp_path / "texts")
    refused(
        folder, "takes texts of width 24 and the text encoder gives 16", transformer_file=tmp_path / "texts"
    )
    WanTransformer3DModel.from_config({**config, "in_channels": 8, "out_channels": 8}).save_pretrained(
        tmp_path / "eight"
    )
    refused(folder, "latents of 8 channels and the VAE decodes 4", transformer_file=tmp_path / "eight")
    config = dict(AutoencoderKLWan.load_config(made / "vae"))
    assert config["z_dim"] == wan_folder.CHANNELS
    small = UMT5Config(vocab_size=9, d_model=16, d_kv=8, d_ff=8, num_layers=1, num_heads=2)
    UMT5EncoderModel(small).save_pretrained(tmp_path / "small")
    refused(
        folder, "the tokenizer has 20 tokens and the text encoder 9", text_encoder_file=tmp_path / "small"
    )


def test_nothing_large_is_read_before_all_is_checked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.video.loading.tensors import Tensors

    def read(self: Tensors, name: str) -> None:
        raise AssertionError("read before everything was checked")

    monkeypatch.setattr(Tensors, "read", read)
    change(folder / "transformer" / "config.json", num_layers=4)
    refused(folder, "lacks blocks.3")


def test_an_embedding_that_is_stored_twice_must_be_the_same(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "text_encoder" / WEIGHTS["text_encoder"]
    state = load_file(path)
    again = {**state, "encoder.embed_tokens.weight": state["shared.weight"].clone()}
    save_file(again, path)
    load_components(folder, **CPU)
    # Saved by some versions of transformers under the other name alone.
    save_file({name: value for name, value in again.items() if name != "shared.weight"}, path)
    assert torch.equal(load_components(folder, **CPU).text_encoder.shared.weight, state["shared.weight"])
    again["encoder.embed_tokens.weight"] = again["encoder.embed_tokens.weight"] + 1
    save_file(again, path)
    refused(folder, "must be one tensor and differ")


def test_a_tokenizer_or_scheduler_that_cannot_be_used(folder: Path) -> None:
    change(folder / "scheduler" / "scheduler_config.json", _class_name="NoSuchScheduler")
    refused(folder, "names the scheduler NoSuchScheduler")
    change(folder / "scheduler" / "scheduler_config.json", _class_name="DDPMScheduler", beta_schedule="none")
    refused(folder, "makes no scheduler: none")
    make_wan_folder(folder)
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    refused(folder, "cannot be read as a tokenizer")
    (folder / "tokenizer" / "tokenizer.json").unlink()
    refused(folder, "no tokenizer's folder: it has none of")


def test_a_checkpoint_of_mindspeed_mm_names_the_command(made: Path, tmp_path: Path) -> None:
    from sightline.checkpoints.megatron.stages import Stages
    from sightline.checkpoints.megatron.wan_convert import wan_hf_to_mm, wan_mm_to_hf

    wan_hf_to_mm(made, tmp_path / "mm", Stages(((2, 1),)))
    refused(tmp_path / "mm", "sightline convert mm-to-hf --mm-dir .*give OUTPUT as transformer_file")
    refused(made, "sightline convert mm-to-hf", transformer_file=tmp_path / "mm")
    wan_mm_to_hf(tmp_path / "mm", made, tmp_path / "back")
    parts = load_components(made, transformer_file=tmp_path / "back", **CPU)
    assert parts.weights_fingerprint() == load_components(made, **CPU).weights_fingerprint()
