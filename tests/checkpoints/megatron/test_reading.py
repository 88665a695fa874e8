"""Checkpoints as they come from training, from elsewhere, or broken: read, or refused in a sentence."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron_parts import assert_same, make_config, make_folder, make_layout
from safetensors.torch import load_file, save_file

from sightline.checkpoints.megatron.convert import hf_to_mm, mm_to_hf
from sightline.checkpoints.megatron.layout import Expected
from sightline.checkpoints.megatron.stages import Stages
from sightline.checkpoints.names import NEW, spelled
from sightline.errors import SightlineError

Tensors = dict[str, torch.Tensor]
QKV = "text_decoder.decoder.layers.0.self_attention.linear_qkv.weight"
NORM = "text_decoder.decoder.layers.0.input_layernorm.weight"


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Tensors]:
    """A folder with `hf` and, of it, `mm` on two by two ranks."""
    tensors = make_folder(tmp_path / "hf", make_config())
    hf_to_mm(tmp_path / "hf", tmp_path / "mm", make_layout("1,3", "4,0", tp=2))
    return tmp_path, tensors


def back(root: Path, **settings: Any) -> Path:
    mm_to_hf(root / "mm", root / "hf", root / "back", **settings)
    return root / "back"


def edit(root: Path, change: Callable[[dict[str, Any]], None], rank: str = "mp_rank_00_000") -> None:
    file = root / "mm/release" / rank / "model_optim_rng.pt"
    content = torch.load(file, weights_only=True)
    change(content)
    torch.save(content, file)


def test_a_trained_checkpoint(made: tuple[Path, Tensors]) -> None:
    root, tensors = made

    def train(content: dict[str, Any]) -> None:
        content["model"]["text_decoder.output_layer._extra_state"] = None
        content["args"] = argparse.Namespace(
            lora_r=8, activation=torch.nn.functional.gelu, dtype=torch.bfloat16
        )
        content["iteration"] = 1200
        content["rng_state"] = [
            {"random": random.getstate(), "numpy": np.random.get_state(), "torch": torch.ones(4)}
        ]
        content["optimizer"] = {"state": {0: {"exp_avg": torch.ones(3, 3)}}, "param_groups": [{"lr": 1e-5}]}
        content["opt_param_scheduler"] = {"max_lr": 1e-5}

    for rank in ("mp_rank_00_000", "mp_rank_01_001"):
        edit(root, train, rank)
    (root / "mm/release").rename(root / "mm/iter_0001200")
    (root / "mm/latest_checkpointed_iteration.txt").write_text("1200\n")
    assert_same(back(root), tensors)
    # The folder of the iteration itself will do, also without the note.
    shutil.rmtree(root / "back")
    (root / "mm/latest_checkpointed_iteration.txt").unlink()
    mm_to_hf(root / "mm/iter_0001200", root / "hf", root / "back")
    assert_same(root / "back", tensors)


def test_tensors_saved_from_an_npu(made: tuple[Path, Tensors], monkeypatch: pytest.MonkeyPatch) -> None:
    """torch_npu names a function of its own for them, which is not there."""
    root, tensors = made
    module = types.ModuleType("torch_npu.utils.storage")

    def _rebuild_npu_tensor(*given: Any) -> Any: ...

    _rebuild_npu_tensor.__module__, _rebuild_npu_tensor.__qualname__ = module.__name__, "_rebuild_npu_tensor"
    module._rebuild_npu_tensor = _rebuild_npu_tensor  # type: ignore[attr-defined]
    for name in ("torch_npu", "torch_npu.utils"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)

    class Saved(torch.Tensor):
        def __reduce_ex__(self, protocol: Any) -> Any:
            storage = torch.storage.TypedStorage(
                wrap_storage=self.untyped_storage(), dtype=self.dtype, _internal=True
            )
            layout = (self.storage_offset(), tuple(self.size()), self.stride())
            return _rebuild_npu_tensor, (storage, *layout, False, {}, True)

    file = root / "mm/release/mp_rank_00_000/model_optim_rng.pt"
    content = torch.load(file, weights_only=True)
    content["model"] = {name: tensor.as_subclass(Saved) for name, tensor in content["model"].items()}
    torch.save(content, file)
    for name in ("torch_npu", "torch_npu.utils", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    assert b"_rebuild_npu_tensor" in file.read_bytes()
    assert_same(back(root), tensors)


class Evil:
    def __init__(self, run: Callable[..., Any], *given: Any) -> None:
        self._run, self._given = run, given

    def __reduce__(self) -> Any:
        return self._run, self._given


def test_a_pickle_that_would_run_something_does_not(made: tuple[Path, Tensors]) -> None:
    import os

    root, tensors = made
    mark = root / "ran"

    def save(thing: Any) -> None:
        file = root / "mm/release/mp_rank_00_000/model_optim_rng.pt"
        content = torch.load(file, weights_only=False) if not mark.exists() else {}
        content["args"] = thing
        torch.save(content, file)

    save(Evil(shutil.copyfile, str(root / "hf/config.json"), str(mark)))
    assert_same(back(root), tensors)  # a stand-in was called; the weights are there
    assert not mark.exists()
    edit_file = root / "mm/release/mp_rank_00_000/model_optim_rng.pt"
    torch.save({"model": {}, "args": Evil(os.system, f"touch {mark}")}, edit_file)
    with pytest.raises(SightlineError, match=r"only their own code can read .*posix"):
        mm_to_hf(root / "mm", root / "hf", root / "again")
    assert not mark.exists()


def missing_rank(root: Path) -> None:
    shutil.rmtree(root / "mm/release/mp_rank_01_000")


def missing_file(root: Path) -> None:
    (root / "mm/release/mp_rank_01_001/model_optim_rng.pt").unlink()


def cut_off(root: Path) -> None:
    file = root / "mm/release/mp_rank_01_001/model_optim_rng.pt"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def expert(root: Path) -> None:
    (root / "mm/release/mp_rank_01_001").rename(root / "mm/release/mp_rank_01_001_000")


def foreign(root: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}}, root / "mm/release/mp_rank_00_000/model_optim_rng.pt")


def bare(root: Path) -> None:
    torch.save(torch.ones(2), root / "mm/release/mp_rank_00_000/model_optim_rng.pt")


def no_pickle(root: Path) -> None:
    (root / "mm/release/mp_rank_00_000/model_optim_rng.pt").write_bytes(b"not a checkpoint at all" * 9)


def old_format(root: Path) -> None:
    file = root / "mm/release/mp_rank_00_000/model_optim_rng.pt"
    torch.save(torch.load(file, weights_only=True), file, _use_new_zipfile_serialization=False)


def differing(root: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["model"][NORM][3] += 1

    edit(root, change, "mp_rank_01_000")


def unknown(root: Path) -> None:
    edit(root, lambda content: content["model"].update({"text_decoder.extra": torch.ones(2)}))


def absent(root: Path) -> None:
    edit(root, lambda content: content["model"].pop(QKV))


def reshaped(root: Path) -> None:
    edit(root, lambda content: content["model"].update({QKV: torch.ones(3, 3).bfloat16()}))


def mixed(root: Path) -> None:
    edit(root, lambda content: content["model"].update({QKV: content["model"][QKV].float()}))


def gap(root: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        model = content["model"]
        for name in [name for name in model if name.startswith("text_decoder.decoder.layers.0.")]:
            model[name.replace("layers.0.", "layers.5.")] = model.pop(name)

    for rank in ("mp_rank_00_000", "mp_rank_01_000"):
        edit(root, change, rank)


def wrong_note(root: Path) -> None:
    (root / "mm/latest_checkpointed_iteration.txt").write_text("500")


def no_ranks(root: Path) -> None:
    shutil.rmtree(root / "mm/release")
    (root / "mm/release").mkdir()


def other_model(root: Path) -> None:
    shutil.rmtree(root / "hf")
    make_folder(root / "hf", make_config(hidden=64))


def more_layers(root: Path) -> None:
    shutil.rmtree(root / "hf")
    make_folder(root / "hf", make_config(layers=5))


def other_family(root: Path) -> None:
    (root / "hf/config.json").write_text('{"model_type": "llama"}')


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (missing_rank, r"lacks mp_rank_01_000/model_optim_rng\.pt"),
    (missing_file, r"mp_rank_01_001 has no model_optim_rng\.pt"),
    (cut_off, r"mp_rank_01_001/model_optim_rng\.pt is cut off"),
    (expert, r"mp_rank_01_001_000 is the rank of an expert-parallel"),
    (foreign, 'has no "model"'),
    (bare, 'has no "model"'),
    (no_pickle, r"is cut off or is not a file of torch\.save|only their own code can read"),
    (old_format, r"torch's old format|is not a file of torch\.save"),
    (differing, r"input_layernorm.* should be copies of one tensor, but they differ"),
    (unknown, r"holds text_decoder\.extra of rank 0, 0, for which the layout has no place"),
    (absent, r"lacks text_decoder\.decoder\.layers\.0\.self_attention\.linear_qkv\.weight of rank 0, 0"),
    (reshaped, r"linear_qkv\.weight of rank 0, 0 is \[3, 3\], but the model's sizes make it \[32, 32\]"),
    (mixed, r"stored as BF16 and F32; save them in one type"),
    (gap, r"has the layers \[5\] under .*not all from 0 on"),
    (wrong_note, "names 500, but there is no folder iter_0000500"),
    (no_ranks, r"has no mp_rank_\* folders"),
    (other_model, "the model's|from another model"),
    (more_layers, r"pp-llm \[\[1,3\]\] holds 4 layers, but the model has 5"),
    (other_family, "is a llama; MindSpeed-MM's layout is known for"),
]


@pytest.mark.parametrize(("fault", "words"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_faults(made: tuple[Path, Tensors], fault: Callable[[Path], None], words: str) -> None:
    root, _ = made
    fault(root)
    with pytest.raises(SightlineError, match=words) as raised:
        back(root)
    assert "\n" not in str(raised.value)
    assert not (root / "back").exists()


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        (Expected(tensor=4), "tp 2, pp-llm.*--tp cannot be 4"),
        (Expected(text=Stages(((2, 2),))), r"--pp-llm cannot be \[\[2,2\]\]"),
        (Expected(vision=Stages(((4,),))), r"--pp-vit cannot be \[\[4\]\]"),
        (Expected(vision_tensor=1), "--vit-tp cannot be 1"),
        (Expected(canonical=True), "--canonical cannot be True"),
    ],
)
def test_a_layout_that_is_not_there(made: tuple[Path, Tensors], expected: Expected, words: str) -> None:
    root, _ = made
    with pytest.raises(SightlineError, match=words):
        back(root, expected=expected)
    right = Expected(2, 2, Stages.parse("1,3", "x"), Stages.parse([[4, 0]], "x"), False)
    back(root, expected=right)


def shard(folder: Path) -> None:
    import json

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {}
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, folder / f"part-{number}.safetensors")
        places |= dict.fromkeys(part, f"part-{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def rename(folder: Path) -> None:
    from sightline.checkpoints.names import canonical

    tensors = load_file(folder / "model.safetensors")
    save_file({spelled(canonical(name), NEW): t for name, t in tensors.items()}, folder / "model.safetensors")


@pytest.mark.parametrize("change", [shard, rename])
def test_hugging_face_folders_of_every_kind(tmp_path: Path, change: Callable[[Path], None]) -> None:
    tensors = make_folder(tmp_path / "hf", make_config())
    change(tmp_path / "hf")
    hf_to_mm(tmp_path / "hf", tmp_path / "mm", make_layout("1,3", "4,0", tp=2))
    mm_to_hf(tmp_path / "mm", tmp_path / "hf", tmp_path / "back", names=NEW)
    assert_same(tmp_path / "back", tensors, NEW)


def test_a_tied_model_that_stores_its_head_too(tmp_path: Path) -> None:
    tensors = make_folder(tmp_path / "hf", make_config(tied=True))
    file = tmp_path / "hf/model.safetensors"
    stored = load_file(file)
    save_file({**stored, "lm_head.weight": stored["model.embed_tokens.weight"].clone()}, file)
    hf_to_mm(tmp_path / "hf", tmp_path / "mm", make_layout("1,3", "4,0"))
    mm_to_hf(tmp_path / "mm", tmp_path / "hf", tmp_path / "back")
    assert_same(tmp_path / "back", tensors)
    save_file({**stored, "lm_head.weight": stored["model.embed_tokens.weight"] + 1}, file)
    with pytest.raises(SightlineError, match="says tie_word_embeddings, but its lm_head.weight differs"):
        hf_to_mm(tmp_path / "hf", tmp_path / "other", make_layout("4", "4"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("model.norm.weight"), "hf lacks text.norm.weight"),
        (lambda t: t.update({"model.layers.0.extra": torch.ones(1)}), "holds text.layers.0.extra, for which"),
        (lambda t: t.update({"model.norm.weight": torch.ones(31)}), r"text.norm.weight is \[31\], but"),
        (lambda t: t.update({"model.language_model.norm.weight": torch.ones(32)}), "under two names"),
        (
            lambda t: t.update({"model.layers.0.self_attn.k_proj.weight": torch.ones(16, 32)}),
            "stored as BF16 and F32",
        ),
    ],
)
def test_hugging_face_folders_with_a_fault(
    tmp_path: Path, change: Callable[[Tensors], Any], words: str
) -> None:
    make_folder(tmp_path / "hf", make_config())
    file = tmp_path / "hf/model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(SightlineError, match=words):
        hf_to_mm(tmp_path / "hf", tmp_path / "mm", make_layout("4", "4"))
    assert not list(tmp_path.glob("*mm*"))
