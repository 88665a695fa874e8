"""LoRA adapters: PEFT's folder <-> the files that MindSpeed-MM saves in its canonical mode.

Only that mode has a linear map for each of Hugging Face's. A map that is cut by columns has its A cut by columns, one
that is cut by rows its B by rows; the other half stands on every rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.checkpoints.adapter import other_method, read_settings
from sightline.checkpoints.entry import Entry
from sightline.checkpoints.megatron import keys
from sightline.checkpoints.megatron.architecture import Architecture
from sightline.checkpoints.megatron.files import MegatronFiles
from sightline.checkpoints.megatron.layout import Layout, Place, Placed
from sightline.checkpoints.mosaic import Mosaic, inverted, whole
from sightline.checkpoints.names import canonical, spelled
from sightline.checkpoints.store import Store
from sightline.errors import SightlineError, UsageError

SIDES = ("A", "B")
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class LoraSource:
    """A PEFT adapter. `entries` by (canonical name of the linear map's weight, side)."""

    store: Store
    settings: dict[str, Any]
    entries: dict[tuple[str, str], Entry]


def open_peft(folder: str | Path) -> LoraSource:
    """Read a PEFT folder.

    Raises:
        SightlineError: it holds more than LoRA on linear maps with one rank and one alpha.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    if (words := other_method(settings)) is not None:
        raise SightlineError(
            f"{folder} uses {words}, which MindSpeed-MM has no place for; LoRA can be converted"
        )
    for key in ("use_rslora", "rank_pattern", "alpha_pattern"):
        if settings.get(key):
            raise SightlineError(
                f"{folder} has {key}, but MindSpeed-MM knows one --lora-r and one --lora-alpha for all layers; "
                "merge the adapter instead"
            )
    store = Store(folder / "adapter_model.safetensors")
    entries: dict[tuple[str, str], Entry] = {}
    for name, entry in store.entries.items():
        module, side = _sided(name)
        if side is None or len(entry.shape) != 2:
            raise SightlineError(
                f"{folder} holds {name}, which is no LoRA of a linear map; MindSpeed-MM has no place for it"
            )
        place = canonical(f"{module}.weight"), side
        if place in entries:
            raise SightlineError(
                f"{folder} holds lora_{side} of {place[0]} under two names, one of them {name}"
            )
        entries[place] = entry
    return LoraSource(store, settings, entries)


def mosaics(
    layout: Layout, model: Architecture, entries: Mapping[tuple[str, str], Entry]
) -> dict[Place, Mosaic]:
    """Every tensor of every file, by (canonical name, side).

    Raises:
        UsageError: not canonical. SightlineError: a tensor has no place, or not its layer's shape.
    """
    if not layout.canonical:
        raise UsageError(
            "LoRA can only be converted in MindSpeed-MM's canonical mode, where no two maps share an A; add --canonical"
        )
    shapes = {key: entry.shape for key, entry in entries.items()}
    _check_shapes(shapes, model)
    found: dict[Place, Mosaic] = {}
    for one in layout.placed(model):
        source = one.sources[0]
        for side in SIDES:
            if (source, side) in shapes:
                mosaic = whole((source, side), shapes[source, side])
                found[_lora_place(one, side)] = _cut(one, side, mosaic)
    used = {tile.source for mosaic in found.values() for tile in mosaic.tiles}
    for key in entries:
        if key not in used:
            raise SightlineError(f"the adapter changes {key[0]}, for which MindSpeed-MM's LoRA has no place")
    return found


def back(
    files: MegatronFiles, layout: Layout, model: Architecture
) -> tuple[dict[tuple[str, str], Mosaic], dict[Place, Mosaic]]:
    """PEFT's tensors, by (canonical name, side), as mosaics of a checkpoint's, and the other way round.

    Raises:
        SightlineError: a tensor that is no LoRA of this model in this layout.
    """
    shapes: dict[tuple[str, str], tuple[int, ...]] = {}
    found: dict[Place, Mosaic] = {}
    sizes = model.tensors()
    for one in layout.placed(model):
        for side in SIDES:
            place = _lora_place(one, side)
            if place not in files.entries or len(sizes[one.sources[0]]) != 2:
                continue
            rank = files.entries[place].shape[0 if side == "A" else 1]
            out, into = sizes[one.sources[0]]
            key = one.sources[0], side
            shapes[key] = (rank, into) if side == "A" else (out, rank)
            found[place] = _cut(one, side, whole(key, shapes[key]))
            if found[place].shape != files.entries[place].shape:
                raise SightlineError(
                    f"{files.folder}: {place} is {list(files.entries[place].shape)}, but this layout makes it "
                    f"{list(found[place].shape)}; give --pp-llm, --pp-vit and --tp as it was trained"
                )
    unknown = [place for place in files.entries if place not in found]
    if unknown:
        raise SightlineError(
            f"{files.folder} holds {unknown[0]}, which is no LoRA of this model in this layout; give --pp-llm, "
            "--pp-vit and --tp as it was trained, in canonical mode"
        )
    if not found:
        raise SightlineError(f"{files.folder} holds no LoRA")
    for name, side in shapes:
        if (name, "B" if side == "A" else "A") not in shapes:
            raise SightlineError(f"{files.folder} has only lora_{side} of {name}")
    return inverted(found, shapes), found


def peft_name(key: tuple[str, str], names: str) -> str:
    """PEFT's name of a tensor, in the old or new spelling of the model's."""
    return f"{_PREFIX}{spelled(key[0], names).removesuffix('.weight')}.lora_{key[1]}.weight"


def peft_settings(tensors: Mapping[str, Mosaic], alpha: float, base: str) -> dict[str, Any]:
    """An adapter_config.json for PEFT's tensors.

    Raises:
        SightlineError: their ranks differ.
    """
    ranks = {mosaic.rows for name, mosaic in tensors.items() if name.endswith("lora_A.weight")}
    if len(ranks) != 1:
        raise SightlineError(f"the adapter has the ranks {sorted(ranks)}; MindSpeed-MM's LoRA has one")
    modules = sorted({name.removeprefix(_PREFIX).rpartition(".lora_")[0] for name in tensors})
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": ranks.pop(),
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        # By their whole names: q_proj and its like stand in the tower of some families too.
        "target_modules": [module.removeprefix("model.") for module in modules],
        "inference_mode": True,
    }


def _cut(one: Placed, side: str, mosaic: Mosaic) -> Mosaic:
    if one.rule.cut is keys.by_columns and side == "A":
        return keys.by_columns(one.words, mosaic, one.share, one.ranks)
    if one.rule.cut is keys.by_rows and side == "B":
        return keys.by_rows(one.words, mosaic, one.share, one.ranks)
    return mosaic


def _lora_place(one: Placed, side: str) -> Place:
    module = one.place.name.removesuffix(".weight")
    return Place(one.place.rank, one.place.chunk, f"{module}.lora_{side}.default.weight")


def _check_shapes(shapes: Mapping[tuple[str, str], tuple[int, ...]], model: Architecture) -> None:
    sizes = model.tensors()
    for (name, side), shape in shapes.items():
        if name not in sizes or len(sizes[name]) != 2:
            raise SightlineError(f"the adapter changes {name}, which is no linear map of this model")
        if (name, "B" if side == "A" else "A") not in shapes:
            raise SightlineError(f"the adapter has only lora_{side} of {name}")
        size = sizes[name][1] if side == "A" else sizes[name][0]
        if shape[1 if side == "A" else 0] != size:
            raise SightlineError(
                f"the adapter's lora_{side} of {name} is {list(shape)}, but the layer is {list(sizes[name])}"
            )


def _sided(name: str) -> tuple[str, str | None]:
    for side in SIDES:
        for end in (f".lora_{side}.weight", f".lora_{side}.default.weight"):
            if name.endswith(end):
                return name.removesuffix(end), side
    return name, None
