"""A model in pieces gives the numbers of the whole one. The pieces lie in host memory and on disk here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_model_folder

from sightline.errors import SightlineError, UsageError
from sightline.hardware.accelerator import Accelerator
from sightline.hardware.memory import Memory
from sightline.models import spread as module_under_test
from sightline.models.loading import VisionLanguageModel, load_model
from sightline.models.spread import Placement, plan

TEXT = "model.language_model"
PIECES = {
    "layer on disk": {
        "model.visual": "cpu",
        f"{TEXT}.embed_tokens": "cpu",
        f"{TEXT}.layers.0": "cpu",
        f"{TEXT}.layers.1": "disk",
        f"{TEXT}.norm": "cpu",
        f"{TEXT}.rotary_emb": "cpu",
        "lm_head": "cpu",
    },
    "tower on disk": {"model.visual": "disk", TEXT: "cpu", "lm_head": "disk"},
    "all on disk": {"": "disk"},
}


def numbers(model: VisionLanguageModel) -> list[torch.Tensor]:
    """Of the tower, the language model and the head, called as the engine calls them."""
    torch.manual_seed(0)
    vision = model.processor.vision
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    pixels, grid = torch.randn(4 * 6, width), torch.tensor([[1, 4, 6]])
    inner = model.module.get_base_model() if hasattr(model.module, "get_base_model") else model.module
    with torch.inference_mode():
        seen = inner.model.get_image_features(pixels, grid, return_dict=True)
        embeds = inner.model.language_model.embed_tokens(torch.arange(9)[None].to(model.device))
        positions = torch.arange(9).expand(3, 1, 9)
        hidden = inner.model.language_model(inputs_embeds=embeds, position_ids=positions).last_hidden_state
        return [*seen.pooler_output, hidden, inner.lm_head(hidden)]


@pytest.mark.parametrize("pieces", PIECES)
def test_pieces_give_the_numbers_of_the_whole(family_folder: Path, tmp_path: Path, pieces: str) -> None:
    whole = load_model(family_folder, device="cpu", dtype="fp32")
    parts = load_model(
        family_folder, device="cpu", dtype="fp32", device_map=PIECES[pieces], offload_folder=tmp_path / "off"
    )
    assert (whole.spread, parts.spread) == (False, True)
    assert parts.placement is not None
    assert parts.placement.offloaded
    assert parts.device == torch.device("cpu")
    assert parts.layer_devices == whole.layer_devices == [torch.device("cpu")] * 2
    assert any(parameter.is_meta for parameter in parts.module.parameters())
    for one, other in zip(numbers(whole), numbers(parts), strict=True):
        assert one.equal(other)


def test_auto_fills_what_it_may_and_leaves_layers_whole(family_folder: Path, tmp_path: Path) -> None:
    whole = load_model(family_folder, device="cpu", dtype="fp32")
    size = sum(parameter.nbytes for parameter in whole.module.parameters())
    parts = load_model(
        family_folder,
        device="cpu",
        dtype="fp32",
        device_map="auto",
        max_memory={"cpu": int(size * 0.7)},
        offload_folder=tmp_path,
    )
    assert parts.spread
    for layer in parts.module.model.language_model.layers:
        assert len({parameter.is_meta for parameter in layer.parameters()}) == 1
    for one, other in zip(numbers(whole), numbers(parts), strict=True):
        assert one.equal(other)


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "model", "qwen2_vl", tied=True)
    pieces = {**PIECES["layer on disk"], f"{TEXT}.embed_tokens": "disk", "lm_head": "disk"}
    parts = load_model(folder, device="cpu", dtype="fp32", device_map=pieces, offload_folder=tmp_path)
    for one, other in zip(
        numbers(load_model(folder, device="cpu", dtype="fp32")), numbers(parts), strict=True
    ):
        assert one.equal(other)


def test_an_adapter_is_spread_with_its_base(tiny_folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    from sightline.models.families import FAMILIES

    base = FAMILIES["qwen2_5_vl"].model_class().from_pretrained(tiny_folder)
    config = LoraConfig(target_modules=r".*(q_proj|up_proj|qkv)", init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    options: dict[str, Any] = {"device": "cpu", "dtype": "fp32", "adapter": tmp_path / "adapter"}
    whole = load_model(tiny_folder, **options)
    parts = load_model(tiny_folder, **options, device_map=PIECES["layer on disk"], offload_folder=tmp_path)
    for one, other in zip(numbers(whole), numbers(parts), strict=True):
        assert one.equal(other)


def test_two_models_share_an_offload_folder_and_clean_it_up(tmp_path: Path) -> None:
    """accelerate alone would take the first one's weights for the second's."""
    folders = [make_model_folder(tmp_path / str(seed), "qwen2_vl", seed=seed) for seed in (1, 2)]
    options: dict[str, Any] = {"device": "cpu", "dtype": "fp32"}
    where = {"device_map": {"": "disk"}, "offload_folder": tmp_path / "off"}
    parts = [load_model(folder, **options, **where) for folder in folders]
    for folder, part in zip(folders, parts, strict=True):
        wanted = numbers(load_model(folder, **options))
        assert all(one.equal(other) for one, other in zip(wanted, numbers(part), strict=True))
    assert len(list((tmp_path / "off").iterdir())) == 2
    import gc

    del parts, part
    gc.collect()
    assert not list((tmp_path / "off").iterdir())


def test_auto_without_cards_loads_as_ever(tiny_folder: Path) -> None:
    assert not load_model(tiny_folder, device="cpu", dtype="fp32", device_map="auto").spread


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"device_map": "balanced"}, "'balanced' is not 'auto'"),
        ({"device_map": {**PIECES["all on disk"]}}, "say in which offload_folder"),
        ({"device_map": {TEXT: "cpu", "lm_head": "cpu"}}, "says nothing of model.visual"),
        (
            {"device_map": {"": "cpu", f"{TEXT}.layers.0.mlp": "disk"}},
            "splits model.language_model.layers.0,",
        ),
        ({"device_map": {"": "cpu", "model.visual.blocks.0": "disk"}}, "splits model.visual,"),
        ({"device_map": "auto", "max_memory": {"cpu": "much"}}, "max_memory"),
    ],
)
def test_what_cannot_be_placed_is_refused(tiny_folder: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        load_model(tiny_folder, device="cpu", dtype="fp32", **options)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Free bytes of cards that are only told of: nothing is moved there."""
    free: dict[int, int] = {}
    monkeypatch.setattr(
        module_under_test, "available", lambda: [Accelerator("cuda", index) for index in free]
    )
    monkeypatch.setattr(Accelerator, "memory", lambda self: Memory(free[self.index], 2**40))
    return free


def test_auto_chooses_by_free_memory(tiny_folder: Path, cards: dict[int, int]) -> None:
    module = load_model(tiny_folder, device="cpu", dtype="fp32").module
    size = sum(parameter.nbytes for parameter in module.parameters())
    card = Accelerator("cuda", 0)
    cards.update({0: size, 1: 2 * size})
    assert plan(module, "auto", None, card) == {"": "cuda:1"}
    cards.update({0: size, 1: size})
    found = plan(module, "auto", None, card)
    assert set(found.values()) == {0, 1}
    layers = [name for name in found if ".layers." in name]
    assert all(name.rsplit(".", 1)[1].isdecimal() for name in layers)
    cards.update({0: size // 4, 1: size // 4})
    with pytest.raises(SightlineError, match="2 visible cards have"):
        plan(module, "auto", None, card)


def test_devices_of_parts() -> None:
    one, two = torch.device("cuda", 0), torch.device("cuda", 1)
    placement = Placement({"model.visual": one, f"{TEXT}.layers.0": one, f"{TEXT}.layers.1": two}, False)
    assert placement.device_of("model.visual.blocks.3") == one
    assert placement.device_of(f"{TEXT}.layers.1.mlp") == two
    assert placement.device_of(TEXT) == one
    assert Placement({"": two}, False).device_of(TEXT) == two
