"""The authors' transformer files (`WanModel`): names, and a config read off shapes, so that any size is known.

Names are those of wan/modules/model.py in Wan-Video/Wan2.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from sightline.errors import SightlineError
from sightline.video.loading.names import count, renamed, swapped
from sightline.video.loading.tensors import Tensors

KIND = "Wan's transformer"
HEAD = 128  # width of a head in every published Wan

_OUTSIDE = (
    ("patch_embedding.", "patch_embedding."),
    ("text_embedding.0.", "condition_embedder.text_embedder.linear_1."),
    ("text_embedding.2.", "condition_embedder.text_embedder.linear_2."),
    ("time_embedding.0.", "condition_embedder.time_embedder.linear_1."),
    ("time_embedding.2.", "condition_embedder.time_embedder.linear_2."),
    ("time_projection.1.", "condition_embedder.time_proj."),
    ("head.modulation", "scale_shift_table"),
    ("head.head.", "proj_out."),
)
_ATTENTION = (
    ("q.", "to_q."),
    ("k.", "to_k."),
    ("v.", "to_v."),
    ("o.", "to_out.0."),
    ("norm_q.", "norm_q."),
    ("norm_k.", "norm_k."),
)
_BLOCK = (
    *((f"self_attn.{theirs}", f"attn1.{ours}") for theirs, ours in _ATTENTION),
    *((f"cross_attn.{theirs}", f"attn2.{ours}") for theirs, ours in _ATTENTION),
    ("ffn.0.", "ffn.net.0.proj."),
    ("ffn.2.", "ffn.net.2."),
    # The authors number the norms by when they were written, diffusers by their order in the forward.
    ("norm3.", "norm2."),
    ("modulation", "scale_shift_table"),
)
_NUMBERED = re.compile(r"(blocks\.\d+\.)(.+)")
# What only other members of the family have, and what they are.
_OTHERS = (
    ("img_emb.", "begins with a picture (image to video)"),
    ("vace_", "edits videos (VACE)"),
    ("face_adapter.", "animates a picture (Wan-Animate)"),
    ("condition_embedder.image_embedder.", "begins with a picture (image to video)"),
)


def is_original(names: Iterable[str]) -> bool:
    """Whether the names are the authors', and not diffusers'."""
    return any(name.startswith(("head.head.", "text_embedding.", "blocks.0.self_attn.")) for name in names)


def to_diffusers(tensors: Tensors) -> Tensors:
    """The same tensors by diffusers' names.

    Raises:
        SightlineError: a tensor is no text-to-video transformer's.
    """
    check_kind(tensors)
    pairs = ((name, _name(name)) for name in tensors.entries)
    return renamed(tensors, pairs, KIND)


def check_kind(tensors: Tensors) -> None:
    """Raises SightlineError where the transformer is one that does more than text to video."""
    for prefix, what in _OTHERS:
        if any(name.startswith(prefix) for name in tensors.entries):
            raise SightlineError(
                f"{tensors.where} is of a model that {what}; Sightline runs text-to-video models, such as "
                "Wan2.1-T2V-1.3B"
            )


def config_of(tensors: Tensors, heads: int | None = None) -> dict[str, Any]:
    """The config of a transformer by the shapes of its tensors.

    Args:
        tensors: by diffusers' names.
        heads: their number, where a config says so; else they are 128 wide.

    Raises:
        SightlineError: a tensor that tells a size is missing, or the width is no multiple of the heads'.
    """
    patch = _sizes(tensors, "patch_embedding.weight", 5)
    width, patch_size = patch[0], patch[2:]
    if heads is None and width % HEAD == 0 and width:
        heads = width // HEAD
    if heads is None or width % heads or (width // heads) % 2 or not all(patch):
        among = f"heads {HEAD} wide" if heads is None else f"{heads} heads of an even width"
        raise SightlineError(
            f"{tensors.where} is {width} wide, which is not divided into {among}; give the folder with its config.json"
        )
    pixels = patch_size[0] * patch_size[1] * patch_size[2]
    rows = _sizes(tensors, "proj_out.weight", 2)[0]
    return {
        "patch_size": list(patch_size),
        "num_attention_heads": heads,
        "attention_head_dim": width // heads,
        "in_channels": patch[1],
        "out_channels": rows // pixels,
        "text_dim": _sizes(tensors, "condition_embedder.text_embedder.linear_1.weight", 2)[1],
        "freq_dim": _sizes(tensors, "condition_embedder.time_embedder.linear_1.weight", 2)[1],
        "ffn_dim": _sizes(tensors, "blocks.0.ffn.net.0.proj.weight", 2)[0],
        "num_layers": count(tensors.entries, "blocks."),
        "cross_attn_norm": "blocks.0.norm2.weight" in tensors,
        "qk_norm": "rms_norm_across_heads" if "blocks.0.attn1.norm_q.weight" in tensors else None,
        "eps": 1e-6,
    }


# Fields of the authors' config.json with diffusers' names for the same.
FIELDS = {
    "num_heads": "num_attention_heads",
    "num_layers": "num_layers",
    "in_dim": "in_channels",
    "out_dim": "out_channels",
    "ffn_dim": "ffn_dim",
    "freq_dim": "freq_dim",
}


def check_config(theirs: dict[str, Any], config: dict[str, Any], where: object) -> None:
    """Whether the authors' config.json is of these weights.

    Args:
        theirs: the file's content.
        config: that of the shapes.

    Raises:
        SightlineError: a number differs, or it is of a model that does more than text to video.
    """
    if theirs.get("model_type", "t2v") != "t2v":
        raise SightlineError(
            f"{where} says model_type {theirs['model_type']}; Sightline runs text-to-video models (t2v), such as "
            "Wan2.1-T2V-1.3B"
        )
    width = config["num_attention_heads"] * config["attention_head_dim"]
    if theirs.get("dim", width) != width:
        raise SightlineError(f"{where} says dim {theirs['dim']}, and the weights are {width} wide")
    for name, ours in FIELDS.items():
        if name in theirs and theirs[name] != config[ours]:
            raise SightlineError(f"{where} says {name} {theirs[name]}, and the weights have {config[ours]}")


def _name(name: str) -> str | None:
    match = _NUMBERED.fullmatch(name)
    if match is None:
        return swapped(name, _OUTSIDE)
    inside = swapped(match[2], _BLOCK)
    return None if inside is None else match[1] + inside


def _sizes(tensors: Tensors, name: str, dimensions: int) -> tuple[int, ...]:
    shape = tensors.shape(name)
    if len(shape) != dimensions:
        raise SightlineError(
            f"{tensors.where}: {name} is {list(shape)}, and should have {dimensions} dimensions in {KIND}"
        )
    return shape
