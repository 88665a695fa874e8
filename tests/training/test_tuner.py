"""What learns and what does not, at which rate, and whether plain peft reads the result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tiny import FAMILIES, make_model, make_model_folder
from transformers import AutoModelForImageTextToText

from sightline.data.rows import load_conversations
from sightline.errors import SightlineError, UsageError
from sightline.models.loading import load_model
from sightline.models.rewrites import apply_rewrites
from sightline.training.config import TrainConfig, load_config
from sightline.training.run import train
from sightline.training.tuner import apply_tuner, parameter_groups, part_of

Settings = Callable[..., TrainConfig]
# Every way to freeze that leaves something to learn: (vision, merger, language).
FREEZES = [
    (v, m, t) for v in (True, False) for m in (True, False) for t in (True, False) if not (v and m and t)
]


def learning_parts(model: torch.nn.Module) -> set[str]:
    return {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}


def freeze_of(vision: bool, merger: bool, language: bool) -> dict[str, bool]:
    return {"freeze__vision": vision, "freeze__merger": merger, "freeze__language": language}


def test_parts_of_names() -> None:
    names = {
        "model.visual.blocks.0.attn.qkv.weight": "vision",
        "model.visual.patch_embed.proj.weight": "vision",
        "model.visual.merger.mlp.0.weight": "merger",
        "base_model.model.model.visual.deepstack_merger_list.1.norm.weight": "merger",
        "model.language_model.layers.0.mlp.up_proj.weight": "language",
        "lm_head.weight": "language",
    }
    assert {name: part_of(name) for name in names} == names


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("tuner", ["lora", "full"])
@pytest.mark.parametrize("frozen", FREEZES, ids=str)
def test_exactly_what_is_not_frozen_learns(
    settings: Settings, model_type: str, tuner: str, frozen: tuple[bool, bool, bool]
) -> None:
    base = make_model(model_type)
    apply_rewrites(base)
    wanted = {part for part, still in zip(("vision", "merger", "language"), frozen, strict=True) if not still}
    parts = {part: {n for n, _ in base.named_parameters() if part_of(n) == part} for part in wanted}
    model = apply_tuner(base, settings(tuner=tuner, **freeze_of(*frozen)))
    assert learning_parts(model) == wanted
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    if tuner == "full":
        assert set(learning) == set().union(*parts.values())
        return
    for part in wanted - {"language"}:
        # Beside the adapter a part learns whole: every one of its parameters.
        assert sum(part_of(name) == part for name in learning) == len(parts[part])
    adapters = [name for name in learning if "lora_" in name]
    assert bool(adapters) == ("language" in wanted)
    assert all(part_of(name) == "language" for name in adapters)


@pytest.mark.parametrize(
    ("model_type", "frozen"),
    [
        ("qwen2_vl", (True, True, False)),
        ("qwen2_5_vl", (True, True, False)),
        ("qwen2_5_vl", (False, True, True)),
        ("qwen3_vl", (True, False, False)),
        ("qwen3_vl", (False, True, False)),
        ("qwen3_vl", (False, False, False)),
    ],
)
def test_adapter_in_plain_peft_gives_the_trained_models_logits(
    settings: Settings, tmp_path: Path, model_type: str, frozen: tuple[bool, bool, bool], rows: Path
) -> None:
    folder = make_model_folder(tmp_path / "model", model_type)
    config = settings(model=folder, max_steps=2, batch_size=4, **freeze_of(*frozen))
    trained = _trained(config)
    plain = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    before = _logits(plain, folder, rows)
    reloaded = PeftModel.from_pretrained(plain, config.output)
    actual = _logits(reloaded, folder, rows)
    torch.testing.assert_close(actual, trained, rtol=1e-4, atol=1e-4)
    assert float((actual - before).abs().max()) > 1e-2


def _trained(config: TrainConfig) -> torch.Tensor:
    """Train, and the logits of the model in memory as it was when training ended."""
    from sightline.training import checkpoint

    kept: list[torch.Tensor] = []
    original = checkpoint.save_final

    def keep(model: Any, processor: Any, same: TrainConfig) -> None:
        inner = model.base_model.model if hasattr(model, "peft_config") else model
        del inner.forward  # the class's own again
        kept.append(_logits(model, config.model, config.data))
        original(model, processor, same)

    checkpoint.save_final = keep
    try:
        train(config)
    finally:
        checkpoint.save_final = original
    return kept[0]


def _logits(model: Any, folder: Path, data: Path) -> torch.Tensor:
    from sightline.models.processor import load_processor

    talk = load_conversations(data)[1]  # two images
    encoded = load_processor(folder).encode(talk, supervise=True)
    with torch.no_grad():
        return model.eval()(
            input_ids=encoded.input_ids[None],
            attention_mask=torch.ones_like(encoded.input_ids)[None],
            mm_token_type_ids=encoded.kinds[None],
            pixel_values=encoded.pixel_values,
            image_grid_thw=encoded.image_grid_thw,
        ).logits


@pytest.mark.parametrize(
    ("frozen", "parts"),
    [
        ({}, {"language"}),
        ({"freeze__merger": False}, {"language", "merger"}),
        ({"freeze__vision": False, "freeze__language": True}, {"vision"}),
    ],
)
def test_full_training_changes_exactly_what_learns(
    settings: Settings, tiny_folder: Path, frozen: dict[str, bool], parts: set[str]
) -> None:
    config = settings(tuner="full", max_steps=2, batch_size=4, **frozen)
    train(config)
    before = load_file(tiny_folder / "model.safetensors")
    after = load_file(config.output / "model.safetensors")
    assert before.keys() == after.keys()
    assert {part_of(name) for name in after if not before[name].equal(after[name])} == parts
    again = load_model(config.output, device="cpu", dtype="fp32")  # a checkpoint like any other
    assert again.processor.tokenizer.chat_template


def test_lora_leaves_the_base_alone_and_adapts_every_linear_of_the_language_model(settings: Settings) -> None:
    config = settings(max_steps=2, batch_size=4, lora__r=4)
    train(config)
    tensors = load_file(config.output / "adapter_model.safetensors")
    modules = {name.partition("layers.")[2].rsplit(".", 2)[0] for name in tensors}
    linears = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    assert modules == {f"{layer}.{name}" for layer in (0, 1) for name in linears}
    assert all(float(tensor.abs().max()) > 0 for name, tensor in tensors.items() if "lora_B" in name)
    assert {tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name} == {4}


def test_rslora_scales_by_the_root_of_the_rank(settings: Settings) -> None:
    config = settings(max_steps=1, lora__r=4, lora__alpha=6.0, lora__rslora=True)
    train(config)
    saved = json.loads((config.output / "adapter_config.json").read_text())
    assert (saved["use_rslora"], saved["lora_alpha"], saved["r"]) == (True, 6.0, 4)
    model = apply_tuner(make_model("qwen2_5_vl"), config)
    scales = {module.scaling["default"] for module in model.modules() if hasattr(module, "lora_A")}
    assert scales == {6.0 / 2.0}


def adapted(settings: Settings, targets: Any, **changes: Any) -> set[str]:
    model = apply_tuner(make_model("qwen2_5_vl"), settings(lora__targets=targets, **changes))
    return {
        name.removeprefix("base_model.model.model.")
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


def test_listed_names_do_not_reach_the_tower(settings: Settings) -> None:
    # Qwen2.5-VL's tower has a gate_proj too.
    names = adapted(settings, ["q_proj", "gate_proj"])
    both = (f"language_model.layers.{n}.{x}" for n in (0, 1) for x in ("self_attn.q_proj", "mlp.gate_proj"))
    assert names == set(both)


def test_regex_reaches_what_it_says(settings: Settings) -> None:
    names = adapted(settings, r".*visual\.blocks\.\d+\.attn\.qkv|.*layers\.1\.mlp\.up_proj")
    assert names == {
        "visual.blocks.0.attn.qkv",
        "visual.blocks.1.attn.qkv",
        "language_model.layers.1.mlp.up_proj",
    }


EXAMPLES = {
    "accumulation": {"language"},
    "freeze-merger-only": {"merger"},
    "full": {"language"},
    "learning-rates": {"vision", "merger", "language"},
    "lora": {"language"},
    "lora-tower": {"vision", "language"},
    "lora-vision": {"vision", "merger", "language"},
}


@pytest.mark.parametrize(("name", "parts"), EXAMPLES.items())
def test_examples_train_what_they_say(name: str, parts: set[str]) -> None:
    config = load_config(Path(__file__).parents[2] / "examples" / f"{name}.yaml")
    model = apply_tuner(make_model("qwen2_5_vl"), config)
    assert learning_parts(model) == parts
    if name == "lora-tower":
        adapters = {key.rsplit(".lora_A", 1)[0] for key, _ in model.named_parameters() if ".lora_A" in key}
        linears = {key for key, module in model.named_modules() if hasattr(module, "base_layer")}
        assert adapters == linears
        assert len(linears) == 2 * 7 + 2 * 5  # two layers of text, two blocks of vision


@pytest.mark.parametrize("targets", [["nonsense"], "nonsense.*", "(", ["qkv"]])
def test_targets_that_match_nothing_are_refused(settings: Settings, targets: Any) -> None:
    with pytest.raises(UsageError, match=r"^lora\.targets .*(nonsense|\(|qkv)"):
        apply_tuner(make_model("qwen2_5_vl"), settings(lora__targets=targets))


def test_groups_have_the_rates_of_their_parts(settings: Settings) -> None:
    changes = freeze_of(False, False, False)
    config = settings(learning_rate=1e-4, vision_lr=2e-6, merger_lr=3e-5, weight_decay=0.1, **changes)
    model = apply_tuner(make_model("qwen3_vl"), config)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, config)
    rates = {"vision": 2e-6, "merger": 3e-5, "language": 1e-4}
    seen: list[str] = []
    for group in groups:
        for parameter in group["params"]:
            seen.append(names[parameter])
            assert group["lr"] == rates[part_of(names[parameter])]
            assert group["weight_decay"] == (0.1 if parameter.dim() > 1 else 0.0)
    assert sorted(seen) == sorted(name for name, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(("tuner", "rate"), [("lora", 1e-4), ("full", 1e-5)])
def test_default_rates(settings: Settings, tuner: str, rate: float) -> None:
    config = settings(tuner=tuner, learning_rate=None)
    groups = parameter_groups(apply_tuner(make_model("qwen2_vl"), config), config)
    assert {group["lr"] for group in groups} == {rate}


@pytest.mark.parametrize("tied", [False, True])
def test_tied_heads_stay_tied(settings: Settings, tmp_path: Path, tied: bool) -> None:
    folder = make_model_folder(tmp_path / "model", "qwen2_5_vl", tied=tied)
    config = settings(model=folder, tuner="full", max_steps=2, batch_size=4)
    train(config)
    module = load_model(config.output, device="cpu", dtype="fp32").module
    head, embedding = module.lm_head.weight, module.get_input_embeddings().weight
    assert (head.data_ptr() == embedding.data_ptr()) == tied
    tensors = load_file(config.output / "model.safetensors")
    assert ("lm_head.weight" in tensors) != tied


def test_run_starts_from_an_adapter(settings: Settings, tmp_path: Path) -> None:
    first = settings(max_steps=2, output=tmp_path / "first", lora__r=4)
    train(first)
    # Nothing can change at such a rate: the result is where the run started.
    second = settings(max_steps=1, output=tmp_path / "second", init_adapter=first.output, learning_rate=1e-30)
    train(second)
    start = load_file(first.output / "adapter_model.safetensors")
    end = load_file(second.output / "adapter_model.safetensors")
    assert start.keys() == end.keys()
    assert all(torch.allclose(start[name], end[name], rtol=0, atol=1e-12) for name in start)


def test_adapters_that_do_not_fit_are_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"init_adapter: .* holds no adapter_config\.json"):
        train(settings(init_adapter=tmp_path))
    first = settings(max_steps=1, output=tmp_path / "first")
    train(first)
    with pytest.raises(
        UsageError, match=r"holds no merger weights, so freeze\.merger: false cannot be followed"
    ):
        train(settings(init_adapter=first.output, freeze__merger=False))
    broken = first.output / "adapter_model.safetensors"
    broken.write_bytes(broken.read_bytes()[:500])
    with pytest.raises(SightlineError, match=r"init_adapter: .* does not fit"):
        train(settings(init_adapter=first.output))


@pytest.mark.parametrize(
    ("model_type", "tuner"),
    [("qwen2_vl", "lora"), ("qwen2_5_vl", "full"), ("qwen3_vl", "full"), ("qwen3_vl", "lora")],
)
def test_bf16_base_learns_in_float32(settings: Settings, tmp_path: Path, model_type: str, tuner: str) -> None:
    folder = make_model_folder(tmp_path / "model", model_type, dtype=torch.bfloat16)
    changes = freeze_of(False, False, False) | {"batch_size": 4, "dtype": "bf16", "tuner": tuner}
    config = settings(model=folder, max_steps=2, gradient_checkpointing=True, **changes)
    result = train(config)
    assert 0 < result.final_loss < 20
    if tuner == "full":
        saved = load_file(config.output / "model.safetensors")
        assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}
    else:
        saved = load_file(config.output / "adapter_model.safetensors")
        assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
