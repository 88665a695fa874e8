"""The transformer of Wan2.1: names of diffusers <-> names of MindSpeed-MM, and its pipeline stages.

Nothing is cut there but the row of blocks; names are those of MindSpeed-MM's checkpoint/sora_model/wan_converter.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sightline.checkpoints.entry import Entry
from sightline.checkpoints.megatron.files import MegatronFiles
from sightline.checkpoints.megatron.layout import Place, Rank
from sightline.checkpoints.megatron.stages import Stages
from sightline.checkpoints.mosaic import Mosaic, whole
from sightline.checkpoints.store import Store, read_config
from sightline.errors import SightlineError, UsageError

CLASS = "WanTransformer3DModel"
STEM = "diffusion_pytorch_model"

# diffusers on the left. Within a block first, the names before and behind the blocks after them.
_BLOCK = (
    ("attn1.norm_q.", "self_attn.q_norm."),
    ("attn1.norm_k.", "self_attn.k_norm."),
    ("attn1.to_q.", "self_attn.proj_q."),
    ("attn1.to_k.", "self_attn.proj_k."),
    ("attn1.to_v.", "self_attn.proj_v."),
    ("attn1.to_out.0.", "self_attn.proj_out."),
    ("attn2.norm_q.", "cross_attn.q_norm."),
    ("attn2.norm_k.", "cross_attn.k_norm."),
    ("attn2.to_q.", "cross_attn.proj_q."),
    ("attn2.to_k.", "cross_attn.proj_k."),
    ("attn2.to_v.", "cross_attn.proj_v."),
    ("attn2.to_out.0.", "cross_attn.proj_out."),
    ("attn2.add_k_proj.", "cross_attn.k_img."),
    ("attn2.add_v_proj.", "cross_attn.v_img."),
    ("attn2.norm_added_k.", "cross_attn.k_norm_img."),
    ("ffn.net.0.proj.", "ffn.0."),
    ("ffn.net.2.", "ffn.2."),
    ("norm2.", "norm3."),
    ("scale_shift_table", "modulation"),
)
_BEFORE = (
    ("patch_embedding.", "patch_embedding."),
    ("condition_embedder.text_embedder.linear_1.", "text_embedding.linear_1."),
    ("condition_embedder.text_embedder.linear_2.", "text_embedding.linear_2."),
    ("condition_embedder.time_embedder.linear_1.", "time_embedding.0."),
    ("condition_embedder.time_embedder.linear_2.", "time_embedding.2."),
    ("condition_embedder.time_proj.", "time_projection.1."),
    ("condition_embedder.image_embedder.norm1.", "img_emb.proj.0."),
    ("condition_embedder.image_embedder.ff.net.0.proj.", "img_emb.proj.1."),
    ("condition_embedder.image_embedder.ff.net.2.", "img_emb.proj.3."),
    ("condition_embedder.image_embedder.norm2.", "img_emb.proj.4."),
    ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"),
)
_BEHIND = (("scale_shift_table", "head.modulation"), ("proj_out.", "head.head."))
_NUMBERED = re.compile(r"blocks\.(\d+)\.(.+)")


def is_wan(folder: str | Path) -> bool:
    """Whether a folder (or its `transformer`) holds Wan's transformer as diffusers saves it."""
    folder = transformer_folder(folder)
    return (folder / "config.json").is_file() and read_config(folder).get("_class_name") == CLASS


def transformer_folder(folder: str | Path) -> Path:
    """The transformer's own folder, where that of a whole pipeline is given."""
    inside = Path(folder) / "transformer"
    return inside if (inside / "config.json").is_file() else Path(folder)


def open_wan(folder: str | Path) -> tuple[Store, int]:
    """The tensors of a transformer, and how many blocks it has.

    Raises:
        SightlineError: a tensor that is not Wan's, or blocks are missing.
    """
    folder = transformer_folder(folder)
    store, layers = Store(folder), int(read_config(folder).get("num_layers", 0))
    blocks: set[int] = set()
    for name in store:
        match = _NUMBERED.fullmatch(name)
        blocks |= {int(match[1])} if match else set()
        _place_of(name, str(folder))
    if blocks != set(range(layers)):
        raise SightlineError(
            f"{folder}/config.json says num_layers {layers}, but its weights have the blocks of {len(blocks)}; "
            "download it again"
        )
    check_complete(store, str(folder))
    return store, layers


def check_complete(names: Iterable[str], where: str) -> None:
    """Every block has the same tensors, and nothing of what stands before and behind them is missing.

    Args:
        names: of all tensors, as diffusers has them.

    Raises:
        SightlineError: the text names what is missing.
    """
    found = set(names)
    blocks: dict[str, set[str]] = {}
    for name in found:
        match = _NUMBERED.fullmatch(name)
        if match:
            blocks.setdefault(match[1], set()).add(match[2])
    inside = set().union(*blocks.values())
    wanted = {f"blocks.{number}.{name}" for number in blocks for name in inside}
    sees = any(".image_embedder." in name for name in found)
    for name, _ in (*_BEFORE, *_BEHIND):
        if name.endswith("pos_embed") or (".image_embedder." in name and not sees):
            continue
        wanted |= {f"{name}weight", f"{name}bias"} if name.endswith(".") else {name}
    missing = sorted(wanted - found)
    if missing:
        raise SightlineError(
            f"{where} lacks {missing[0]}" + (f" and {len(missing) - 1} more" * (len(missing) > 1))
        )


def mosaics(shapes: Mapping[str, tuple[int, ...]], layers: int, stages: Stages) -> dict[Place, Mosaic]:
    """Every tensor of every file, by diffusers' names.

    Raises:
        UsageError: the stages do not hold the model's blocks.
    """
    if stages.total != layers:
        raise UsageError(f"--pp {stages} holds {stages.total} blocks, but the model has {layers}")
    last = stages.ranks * stages.chunks - 1
    found: dict[Place, Mosaic] = {}
    for name, shape in shapes.items():
        block, theirs = _place_of(name, "the model")
        if block is None:
            stage = 0 if theirs.partition(".")[0] != "head" else last
        else:
            stage = next(number for number in range(last + 1) if block in stages.layers(number))
            theirs = f"blocks.{block - stages.layers(stage).start}.{theirs}"
        place = Place(Rank(0, stage % stages.ranks), stage // stages.ranks, theirs)
        found[place] = whole(name, shape)
    return found


def stages_of(files: MegatronFiles) -> Stages:
    """The blocks of each stage, by the numbers in their names.

    Raises:
        SightlineError: they are not numbered from 0 on, or tensors are cut.
    """
    if files.tensor_ranks != 1:
        raise SightlineError(
            f"{files.folder} has {files.tensor_ranks} tensor-parallel ranks; Wan is not cut so"
        )
    found: dict[tuple[int, int], set[int]] = {}
    for place in files.entries:
        match = _NUMBERED.fullmatch(place.name)
        if match:
            found.setdefault((place.chunk, place.rank.pipeline), set()).add(int(match[1]))
    for (chunk, rank), blocks in found.items():
        if blocks != set(range(len(blocks))):
            raise SightlineError(
                f"{files.folder}: chunk {chunk} of rank {rank} has the blocks {sorted(blocks)}"
            )
    return Stages(
        tuple(
            tuple(len(found.get((chunk, rank), ())) for rank in range(files.pipeline_ranks))
            for chunk in range(files.chunks)
        )
    )


def names_back(entries: Mapping[Place, Entry], stages: Stages) -> dict[str, Place]:
    """diffusers' name of every tensor of a checkpoint.

    Raises:
        SightlineError: a tensor that is not Wan's, or one is missing.
    """
    found: dict[str, Place] = {}
    for place in entries:
        match = _NUMBERED.fullmatch(place.name)
        stage = place.chunk * stages.ranks + place.rank.pipeline
        if match:
            name = _renamed(match[2], [(theirs, ours) for ours, theirs in _BLOCK])
            name = None if name is None else f"blocks.{stages.layers(stage)[int(match[1])]}.{name}"
        else:
            name = _renamed(place.name, [(theirs, ours) for ours, theirs in (*_BEFORE, *_BEHIND)])
        if name is None:
            raise SightlineError(f"{place} is no tensor of Wan's transformer")
        if name in found:
            raise SightlineError(f"{place} and {found[name]} are both {name}")
        found[name] = place
    check_complete(
        found, str(next(iter(entries.values())).file.parent.parent) if entries else "the checkpoint"
    )
    return found


def _place_of(name: str, where: str) -> tuple[int | None, str]:
    """The block that a tensor of diffusers belongs to, and its name there; None for one outside of the blocks."""
    match = _NUMBERED.fullmatch(name)
    rest = match[2] if match else name
    theirs = _renamed(rest, _BLOCK if match else (*_BEFORE, *_BEHIND))
    if theirs is None:
        raise SightlineError(f"{where} holds {name}, for which MindSpeed-MM's Wan has no place")
    return (int(match[1]) if match else None), theirs


def _renamed(name: str, table: Any) -> str | None:
    for ours, theirs in table:
        if name.startswith(ours) and (ours.endswith(".") or name == ours):
            return str(theirs) + name.removeprefix(ours)
    return None
