"""Which adapter folders are taken: every tensor finds its place, and each mistake is one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_folders import KINDS, adapter_of, base_of, make_adapter
from safetensors.torch import load_file, save_file
from tiny import make_model_folder

from sightline.checkpoints.adapter import open_adapter
from sightline.checkpoints.store import Store
from sightline.errors import SightlineError
from sightline.models.adapters.places import Places
from sightline.models.adapters.reading import Reading, read_adapter

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def places(tiny_folder: Path) -> Places:
    return Places.of(base_of(tiny_folder), tiny_folder)


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the adapter `sight`, to be spoilt."""
    return Path(shutil.copytree(adapter_of(tiny_folder, "sight"), tmp_path / "copied"))


def edit(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def renamed(folder: Path, rename: Callable[[str], str | None]) -> None:
    """Give the adapter's tensors other names; None drops one."""
    path = folder / "adapter_model.safetensors"
    tensors = {rename(name): tensor for name, tensor in load_file(path).items()}
    save_file({name: tensor for name, tensor in tensors.items() if name is not None}, path)


@pytest.mark.parametrize("kind", KINDS)
def test_changes_are_those_of_a_merge(tiny_folder: Path, places: Places, kind: str) -> None:
    """Ranks, scales and patterns as `sightline merge` reads them, which is tested against PEFT."""
    reading = read_adapter(adapter_of(tiny_folder, kind), places, max_rank=8)
    store = Store(tiny_folder)
    known = open_adapter(adapter_of(tiny_folder, kind), store)
    assert len(reading.linear) + len(reading.vision) == len(known.changes)
    assert bool(reading.vision) == (kind != "words")
    for (layer, name), change in reading.linear.items():
        parent = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
        target = next(one for one in known.changes if f"layers.{layer}.{parent}.{name}." in one)
        pair = reading.pair(change, CPU, torch.float32)
        zeros = torch.zeros(store.shape(target))
        torch.testing.assert_close((pair.down @ pair.up).T, known.changed(zeros, target))


def test_names_of_old_transformers_find_their_places(tiny_folder: Path, places: Places, copied: Path) -> None:
    renamed(
        copied,
        lambda name: name.replace("model.model.language_model.", "model.model.").replace(
            "model.model.visual.", "model.visual."
        ),
    )
    new = read_adapter(adapter_of(tiny_folder, "sight"), places, max_rank=8)
    old = read_adapter(copied, places, max_rank=8)
    assert old.adapter.changes.keys() == new.adapter.changes.keys()
    assert set(old.linear) == set(new.linear)
    assert set(old.vision) == set(new.vision)


def test_a_quantized_model_has_the_places_of_its_float_layers(tiny_folder: Path) -> None:
    from sightline.models.quantization.module import quantize_module

    module = base_of(tiny_folder)
    plain = Places.of(module, tiny_folder)
    quantize_module(module, "int4")
    few_bits = Places.of(module, tiny_folder)
    # The tied or quantized head is no place of an adapter.
    assert {name for name in plain if name != "lm_head.weight"} <= set(few_bits)
    assert all(few_bits.shape(name) == plain.shape(name) for name in few_bits if name in plain)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True}, "uses DoRA, which cannot be computed beside other adapters"),
        ({"peft_type": "IA3"}, "uses IA3"),
        ({"lora_bias": True}, "LoRA with a bias"),
        ({"trainable_token_indices": [1]}, "trainable tokens"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"r": 7}, "has rank 3, but adapter_config.json says 7"),
    ],
)
def test_methods_that_are_refused(places: Places, copied: Path, settings: dict[str, Any], words: str) -> None:
    edit(copied, **settings)
    check_refused(copied, places, words)


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (
        lambda folder: (folder / "adapter_model.safetensors").unlink(),
        "has no adapter_model.safetensors",
    ),
    "pickled weights": (
        lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"),
        "pickled .bin",
    ),
    "no settings": (
        lambda folder: (folder / "adapter_config.json").unlink(),
        "no adapter_config.json",
    ),
    "a layer too many": (
        lambda folder: renamed(folder, lambda name: name.replace("layers.1.", "layers.7.")),
        "layers.7",
    ),
    "half of a pair": (
        lambda folder: renamed(folder, lambda name: None if "0.self_attn.q_proj.lora_A" in name else name),
        "stands alone",
    ),
    "cut off": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(
            (folder / "adapter_model.safetensors").read_bytes()[:-100]
        ),
        "is cut off",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_folders_that_are_refused(places: Places, copied: Path, name: str) -> None:
    spoil, words = SPOILT[name]
    spoil(copied)
    check_refused(copied, places, words)


def test_an_adapter_of_another_model_is_refused_with_the_base_it_names(
    places: Places, tmp_path: Path
) -> None:
    other = make_model_folder(tmp_path / "other", "qwen3_vl")
    folder = make_adapter(other, tmp_path / "adapter", target_modules=["q_proj"], r=2)
    check_refused(folder, places, f"was made for {other}, a model of another family")


def test_an_adapter_of_another_size_is_refused_with_the_base_it_names(
    places: Places, copied: Path, tmp_path: Path
) -> None:
    path = copied / "adapter_model.safetensors"
    tensors = load_file(path)
    wide = next(name for name in tensors if "layers.0.self_attn.q_proj.lora_A" in name)
    tensors[wide] = torch.ones(len(tensors[wide]), 99)
    save_file(tensors, path)
    edit(copied, base_model_name_or_path="Qwen/another")
    check_refused(copied, places, "the adapter does not fit this model (it names Qwen/another as its base)")
    check_refused(copied, places, "its change is 64x99, but model.language_model.layers.0.self_attn.q_proj")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"modules_to_save": ["embed_tokens"]}, "model.language_model.embed_tokens in full"),
        ({"modules_to_save": ["lm_head"]}, "lm_head in full"),
        ({"modules_to_save": ["input_layernorm"]}, "layers.0.input_layernorm in full"),
        ({"target_modules": ["lm_head"]}, "lm_head by LoRA"),
        ({"bias": "all"}, "_proj.bias in full"),
    ],
)
def test_parts_that_cannot_be_batched_are_named(
    tiny_folder: Path, places: Places, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    chosen = {"target_modules": r".*language_model.*q_proj", "r": 2} | settings
    folder = make_adapter(tiny_folder, tmp_path / "adapter", **chosen)
    check_refused(folder, places, words)
    check_refused(folder, places, "sightline merge")


def test_a_rank_above_the_limit_is_refused(tiny_folder: Path, places: Places) -> None:
    with pytest.raises(SightlineError, match="rank 4, above max_lora_rank 3"):
        read_adapter(adapter_of(tiny_folder, "words"), places, max_rank=3)


def test_nan_is_refused_when_it_is_read(places: Places, copied: Path) -> None:
    path = copied / "adapter_model.safetensors"
    tensors = load_file(path)
    spoilt = next(name for name in tensors if "layers.0.self_attn.q_proj.lora_B" in name)
    tensors[spoilt][0, 0] = torch.nan
    save_file(tensors, path)
    reading = read_adapter(copied, places, max_rank=8)
    with pytest.raises(SightlineError, match=r"nan.*layers\.0\.self_attn\.q_proj"):
        reading.pair(reading.linear[0, "q_proj"], CPU, torch.float32)


def check_refused(folder: Path, places: Places, words: str) -> None:
    with pytest.raises(SightlineError) as raised:
        read_adapter(folder, places, max_rank=64)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_size_is_known_before_anything_is_read(tiny_folder: Path, places: Places) -> None:
    reading: Reading = read_adapter(adapter_of(tiny_folder, "words"), places, max_rank=8)
    from sightline.engine.llm import LLM

    llm = LLM(tiny_folder, dtype="fp32", device="cpu", adapters={"w": reading.folder})
    assert llm.engine.adapters["w"].bytes == pytest.approx(4 * reading.elements(), rel=0.3)
