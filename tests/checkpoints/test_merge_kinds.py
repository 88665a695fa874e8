"""Every kind of adapter that can be merged, against PEFT, with tensors cut into chunks of a few rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import FAMILIES, make_model_folder

from sightline.checkpoints import update, verify, writing
from sightline.checkpoints.merge import check, merge
from sightline.checkpoints.names import canonical
from sightline.checkpoints.store import Store
from sightline.checkpoints.verify import load_plain
from sightline.errors import SightlineError, UsageError

KINDS: dict[str, dict[str, Any]] = {
    "rslora": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "dora": {"target_modules": ["q_proj", "k_proj", "gate_proj", "qkv"], "use_dora": True},
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "dora of an embedding": {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True},
    "convolution": {"target_modules": r".*patch_embed\.proj|.*q_proj"},
    "dora of a convolution": {"target_modules": r".*patch_embed\.proj|.*q_proj", "use_dora": True},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 7, 190]}},
    "tokens by a list": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 2]},
    "whole modules": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm2", "merger"]},
    "biases": {"target_modules": ["q_proj", "v_proj"], "bias": "lora_only"},
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows at a time: tensors end in the middle of a chunk, and chunks in the middle of a tensor."""
    chunks = writing.row_chunks
    monkeypatch.setattr(writing, "row_chunks", lambda entry, most=1500: chunks(entry, most))
    monkeypatch.setattr(writing, "CHUNK", 777)
    monkeypatch.setattr(update, "_ROWS", 7)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {tied: make_model_folder(root / str(tied), tied=tied) for tied in (False, True)}


def train(
    base: Path, folder: Path, *, seed: int = 2, dtype: torch.dtype | None = None, **settings: Any
) -> Path:
    """An adapter on a base, every tensor of it moved off its start."""
    model = load_plain(base)
    model = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, **settings}))
    torch.manual_seed(seed)
    moved = ("lora_", "modules_to_save", "trainable_tokens_delta")
    for name, weight in model.named_parameters():
        if any(part in name for part in moved) or (settings.get("bias") and name.endswith("bias")):
            weight.data = weight.data + 0.1 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return folder


def unloaded(base: Path, *adapters: Path, weights: tuple[float, ...] = ()) -> dict[str, torch.Tensor]:
    """What PEFT makes of them, by canonical name."""
    model = PeftModel.from_pretrained(load_plain(base), adapters[0], adapter_name="0")
    for number, folder in enumerate(adapters[1:], start=1):
        model.load_adapter(folder, adapter_name=str(number))
    for number, weight in enumerate(weights):
        for module in model.modules():
            if isinstance(getattr(module, "scaling", None), dict) and str(number) in module.scaling:
                module.scaling[str(number)] *= weight
    merged = model.merge_and_unload(adapter_names=[str(number) for number in range(len(adapters))])
    return {canonical(name): tensor for name, tensor in merged.state_dict().items()}


def assert_near(folder: Path, expected: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    store = Store(folder)
    for name in store:
        found, theirs = store.get(name).float(), expected[canonical(name)].float()
        assert torch.allclose(found, theirs, atol=tolerance, rtol=tolerance), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_as_peft_merges_it(
    bases: dict[bool, Path], tmp_path: Path, kind: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = bases[tied]
    adapter = train(base, tmp_path / "adapter", **KINDS[kind])
    report = merge(base, adapter, tmp_path / "out", verify=True)
    assert report.largest_difference is not None
    assert report.adapter_moved is not None
    assert report.largest_difference < 2e-4 < 0.01 < report.adapter_moved
    if not tied:
        assert_near(tmp_path / "out", unloaded(base, adapter))
    parted = tied and ("embedding" in kind or kind == "whole modules")
    assert report.untied == parted
    # Layer by layer from the disk gives the same proof.
    monkeypatch.setattr(verify, "_fits", lambda folder: False)
    proof = check(base, [adapter], tmp_path / "out")
    assert proof.difference < 2e-4
    assert proof.moved == pytest.approx(report.adapter_moved, rel=1e-3)


def test_several_adapters_with_weights(
    bases: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = bases[False]
    one = train(base, tmp_path / "one", target_modules=["q_proj", "v_proj", "embed_tokens"], seed=3)
    two = train(base, tmp_path / "two", target_modules=["q_proj", "down_proj", "embed_tokens"], seed=4, r=8)
    folders, weights = [one, two], (0.3, -0.5)
    report = merge(base, folders, tmp_path / "out", weights=weights, verify=True)
    assert report.largest_difference is not None
    assert report.largest_difference < 1e-4
    assert report.adapted == 9  # q, v, down and the tower's down of two layers each, and the embedding
    assert_near(tmp_path / "out", unloaded(base, one, two, weights=weights))
    monkeypatch.setattr(verify, "_fits", lambda folder: False)
    assert check(base, folders, tmp_path / "out", weights=weights).difference < 1e-4
    # The wrong weights, or one of them alone, are no proof.
    for other in ([1.0, 1.0], [0.3, 0.5]):
        with pytest.raises(SightlineError, match="answers hardly more like base . adapter|another adapter's"):
            check(base, folders, tmp_path / "out", weights=other)


def test_weights_that_are_none(bases: dict[bool, Path], tmp_path: Path) -> None:
    base = bases[False]
    one = train(base, tmp_path / "one", target_modules=["q_proj"])
    dora = train(base, tmp_path / "dora", target_modules=["q_proj"], use_dora=True)
    for weights, words in (([1.0, 2.0], "1 adapters have 2 weights"), ([float("nan")], "must be numbers")):
        with pytest.raises(UsageError, match=words):
            merge(base, one, tmp_path / "out", weights=weights)
    with pytest.raises(UsageError, match="no adapter is given"):
        merge(base, [], tmp_path / "out")
    for folders, given in (([dora], [0.5]), ([one, dora], [1.0, 1.0])):
        with pytest.raises(
            SightlineError, match="DoRA adapter, which can only be merged alone and with weight 1"
        ):
            merge(base, folders, tmp_path / "out", weights=given)
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", ["rslora", "dora"])
def test_the_sum_is_rounded_once(tmp_path: Path, dtype: torch.dtype, kind: str) -> None:
    base = make_model_folder(tmp_path / "base", dtype=dtype)
    adapter = train(base, tmp_path / "adapter", **KINDS[kind])
    merge(base, adapter, tmp_path / "out")
    exact, store = unloaded(base, adapter), Store(tmp_path / "out")  # PEFT in float32
    step = torch.finfo(dtype).eps
    for name in store:
        assert store.get(name).dtype == dtype
        wanted = exact[canonical(name)].double()
        # Half a step of the type, and a little for the order of sums.
        bound = wanted.abs() * step * 0.51 + 1e-6
        assert ((store.get(name).double() - wanted).abs() <= bound).all(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_folders_saved_by_the_installed_transformers(tmp_path: Path, family: str) -> None:
    base = make_model_folder(tmp_path / "base", family)
    adapter = train(base, tmp_path / "adapter", target_modules="all-linear")
    report = merge(base, adapter, tmp_path / "out", verify=True)
    assert report.largest_difference is not None
    assert report.largest_difference < 2e-3
    assert all(canonical(name).startswith(("text.", "visual.", "lm_head.")) for name in Store(base))


def test_a_base_of_another_kind(tmp_path: Path, bases: dict[bool, Path]) -> None:
    """Two families whose language models have layers of one name and size."""
    adapter = train(bases[False], tmp_path / "adapter", target_modules=["q_proj"])
    other = make_model_folder(tmp_path / "other", "qwen2_vl")
    with pytest.raises(
        SightlineError,
        match=r"was trained on a Qwen2_5_VL.*, but the base is a Qwen2VLForConditionalGeneration",
    ):
        merge(other, adapter, tmp_path / "out")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["auto_mapping"] = {"base_model_class": "Qwen3VLForConditionalGeneration"}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(SightlineError, match="was trained on a Qwen3VL"):
        merge(bases[False], adapter, tmp_path / "out")


def test_two_names_of_one_tensor(tmp_path: Path, bases: dict[bool, Path]) -> None:
    adapter = train(bases[False], tmp_path / "adapter", target_modules=["q_proj"])
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "language_model.layers.0" in name)
    save_file({**tensors, name.replace("language_model.", ""): tensors[name].clone()}, file)
    with pytest.raises(SightlineError, match="which are one tensor of"):
        merge(bases[False], adapter, tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"trainable_token_indices": {"embed_tokens": [3, 7]}},
            "trained 3 single tokens of .*does not name 3",
        ),
        ({"trainable_token_indices": {"embed_tokens": [3, 7, 7]}}, "does not name 3 different"),
        ({"trainable_token_indices": {"embed_tokens": [3, 7, 99_999]}}, "different ones below"),
        ({"trainable_token_indices": None}, "does not name 3"),
    ],
)
def test_tokens_that_are_not_named(
    bases: dict[bool, Path], tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    adapter = train(bases[False], tmp_path / "adapter", **KINDS["tokens"])
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    with pytest.raises(SightlineError, match=words):
        merge(bases[False], adapter, tmp_path / "out")


def test_dora_without_its_lengths(bases: dict[bool, Path], tmp_path: Path) -> None:
    adapter = train(bases[False], tmp_path / "adapter", **KINDS["dora"])
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    magnitude = next(name for name in tensors if "magnitude" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != magnitude}, file)
    with pytest.raises(SightlineError, match="uses DoRA, but has no lora_magnitude_vector for"):
        merge(bases[False], adapter, tmp_path / "out")
    save_file({**tensors, magnitude: torch.ones(3)}, file)
    with pytest.raises(SightlineError, match="has 3 numbers, but the layer has"):
        merge(bases[False], adapter, tmp_path / "out")


def test_dry_run_and_a_device(bases: dict[bool, Path], tmp_path: Path) -> None:
    adapter = train(bases[False], tmp_path / "adapter", target_modules=["q_proj"])
    planned = merge(bases[False], adapter, tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    made = merge(bases[False], adapter, tmp_path / "out", device="cpu")
    assert (planned.adapted, planned.copied, planned.bytes, planned.files) == (
        made.adapted,
        made.copied,
        made.bytes,
        made.files,
    )
