"""Everything that can be wrong with a checkpoint folder is said in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import make_model

from sightline.errors import SightlineError, UsageError
from sightline.hardware.accelerator import Accelerator
from sightline.models.loading import load_model
from sightline.models.processor import load_processor

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A checkpoint to break."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture
def sharded(folder: Path) -> Path:
    """The same in several files with an index."""
    (folder / "model.safetensors").unlink()
    make_model("qwen2_5_vl").save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def refused(folder: Any, **options: Any) -> str:
    with pytest.raises(SightlineError) as error:
        load_model(folder, **{"device": "cpu", "dtype": "fp32", **options})
    text = str(error.value)
    assert "\n" not in text
    assert "Traceback" not in text
    return text


def test_loads_every_family_as_transformers_does(family_folder: Path) -> None:
    loaded = load_model(family_folder, device="cpu", dtype="fp32")
    plain = loaded.processor.family.model_class().from_pretrained(family_folder, dtype=torch.float32)
    expected = plain.state_dict()
    actual = loaded.module.state_dict()
    assert expected.keys() == actual.keys()
    assert all(expected[name].equal(actual[name]) for name in expected)
    assert not loaded.module.training


def test_loads_shards(sharded: Path, tiny_folder: Path) -> None:
    one = load_model(sharded, device="cpu", dtype="fp32").module.state_dict()
    other = load_model(tiny_folder, device="cpu", dtype="fp32").module.state_dict()
    assert all(one[name].equal(other[name]) for name in other)


@pytest.mark.parametrize("name", ["bf16", "bfloat16", "fp16", "fp32"])
def test_dtypes(folder: Path, name: str) -> None:
    loaded = load_model(folder, device="cpu", dtype=name)
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {loaded.dtype}
    assert str(loaded.dtype) in ("torch.bfloat16", "torch.float16", "torch.float32")


def test_not_a_folder(tmp_path: Path) -> None:
    assert f"{tmp_path / 'absent'} is not a folder" in refused(tmp_path / "absent")
    (tmp_path / "file").write_text("x")
    assert "is not a folder" in refused(tmp_path / "file")


def test_no_or_broken_config(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text("{")
    assert f"{config} is not readable JSON" in refused(folder)
    config.write_text("[]")
    assert f"{config} must hold a JSON object, not list" in refused(folder)
    config.unlink()
    assert "holds no config.json" in refused(folder)


def test_adapter_given_as_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "this is an adapter: give its base model" in refused(tmp_path)


@pytest.mark.parametrize("model_type", ["llama", "qwen3_vl_moe", None])
def test_unsupported_architecture_lists_the_supported(folder: Path, model_type: str | None) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    text = refused(folder)
    assert repr(model_type) in text
    assert "supported are qwen2_vl, qwen2_5_vl, qwen3_vl" in text


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "neither model.safetensors nor model.safetensors.index.json" in refused(folder)


def test_missing_shard(sharded: Path) -> None:
    shards = sorted(sharded.glob("model-*.safetensors"))
    shards[1].unlink()
    text = refused(sharded)
    assert f"lacks the shard {shards[1].name}; download" in text


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_broken_index(sharded: Path, content: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in refused(sharded)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _without_tensor(path: Path) -> None:
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path, {"format": "pt"})


def _other_shape(path: Path) -> None:
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if name.endswith("down_proj.weight"))
    tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "is cut off: "),
        (lambda path: path.write_bytes(b""), "is cut off or not a safetensors file"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "model.safetensors is cut off"),
        (lambda path: path.write_text(POINTER), "model.safetensors is a pointer of Git LFS"),
        (_without_tensor, "lack 1 tensors, first"),
        (_other_shape, "down_proj"),
    ],
)
def test_damaged_weights(folder: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(folder / "model.safetensors")
    text = refused(folder)
    assert message in text
    assert str(folder) in text


def test_truncated_shard(sharded: Path) -> None:
    _truncate(sorted(sharded.glob("model-*.safetensors"))[0])
    assert "is cut off: " in refused(sharded)


def test_wrong_dtype_names_and_devices(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "dtype 'fp8' is not one of auto, bf16, fp16, fp32" in refused(folder, dtype="fp8")
    assert "'tpu' is not cpu, cuda, npu" in refused(folder, device="tpu")
    monkeypatch.setattr(Accelerator, "supports", lambda self, dtype: dtype != torch.bfloat16)
    with pytest.raises(UsageError, match="does not compute in bf16"):
        load_model(folder, device="cpu", dtype="bf16")


def test_no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert f"{folder} has no tokenizer.json; copy it" in refused(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_files_that_were_not_fetched(folder: Path, name: str) -> None:
    (folder / name).write_text(POINTER)
    assert f"{folder / name} is a pointer of Git LFS, not the file itself; run git lfs pull" in refused(
        folder
    )


def test_a_broken_chat_template_is_found_at_the_start(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}\n{% for x in %}")
    assert f"the chat template in {folder} is broken in line 2: " in refused(folder)
    # What a template refuses is the conversation's matter.
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system message') }}")
    load_processor(folder)


def test_tokenizer_of_another_kind(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace("<|image_pad|>", "<|other|>"))
    path = folder / "tokenizer_config.json"
    path.write_text(path.read_text().replace("<|image_pad|>", "<|other|>"))
    assert "has no <|image_pad|>; it is not a Qwen-VL tokenizer" in refused(folder)


def test_chat_template_may_stand_in_an_old_file(folder: Path) -> None:
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    assert "has no chat template" in refused(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert load_processor(folder).tokenizer.chat_template == template


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_broken_old_chat_template(folder: Path, content: str) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(content)
    assert "chat_template.json" in refused(folder)


def test_adapter_errors(folder: Path, tmp_path: Path) -> None:
    assert "holds no adapter_config.json" in refused(folder, adapter=tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "does not fit this model" in refused(folder, adapter=tmp_path)


def test_weights_that_do_not_fit(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def to(module: Any, device: Any) -> Any:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 1.25 GiB. GPU 0 has a total capacity"
        )

    monkeypatch.setattr(transformers.PreTrainedModel, "to", to)
    text = refused(tiny_folder)
    assert "do not fit into the memory of cpu (1.25 GiB more were asked for)" in text
    assert "device_map" in text
