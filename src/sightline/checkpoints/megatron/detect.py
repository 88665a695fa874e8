"""The layout of a MindSpeed-MM checkpoint, read off its files; and the model's sizes, where no config.json tells."""

from __future__ import annotations

import re

from sightline.checkpoints.megatron.architecture import Architecture
from sightline.checkpoints.megatron.files import MegatronFiles
from sightline.checkpoints.megatron.layout import TEXT_LAYERS, VISION_LAYERS, Layout, Place
from sightline.checkpoints.megatron.stages import Pipeline, Stages
from sightline.checkpoints.writing import same_bytes
from sightline.errors import SightlineError

_EMBEDDING = "text_decoder.embedding.word_embeddings.weight"
_HEAD = "text_decoder.output_layer.weight"
# Of every published Qwen2-VL and Qwen2.5-VL; only asked where nothing else tells.
_HEAD_DIM, _VISION_HEAD_DIM = 128, 80


def layout_of(files: MegatronFiles, model: Architecture) -> Layout:
    """How the checkpoint of a model is cut.

    Raises:
        SightlineError: a part of the model is missing, or its sizes are not the model's.
    """
    names = {place.name for place in files.entries}
    canonical = any(name.endswith("self_attention.q_proj.weight") for name in names)
    cut = "self_attention.linear_proj.weight"
    tensor = _ranks(files, TEXT_LAYERS, cut, model.hidden)
    vision_tensor = _ranks(files, VISION_LAYERS, cut, model.vision_hidden)
    if max(tensor, vision_tensor) != files.tensor_ranks:
        raise SightlineError(
            f"{files.folder} has {files.tensor_ranks} tensor-parallel ranks, but a model of hidden size {model.hidden} "
            f"in the language model and {model.vision_hidden} in the tower would be cut over {tensor} and "
            f"{vision_tensor} in its files; was it converted from another model?"
        )
    return Layout(
        Pipeline(_stages(files, TEXT_LAYERS), _stages(files, VISION_LAYERS)),
        tensor=tensor,
        vision_tensor=vision_tensor,
        canonical=canonical,
        copies_head=_HEAD in names,
    )


def architecture_of(files: MegatronFiles) -> Architecture:
    """The model's sizes by its tensors alone, for heads of the published models' widths.

    Raises:
        SightlineError: they do not tell.
    """
    shapes = {place.name: entry.shape for place, entry in files.entries.items()}
    try:
        text = _stages(files, TEXT_LAYERS)
        vision = _stages(files, VISION_LAYERS)
        hidden = shapes["text_decoder.decoder.final_layernorm.weight"][0]
        tensor = hidden // _of_layer(shapes, TEXT_LAYERS, "self_attention.linear_proj.weight")[1]
        patch = shapes["image_encoder.encoder.patch_embed.proj.weight"]
        width = patch[0]
        vision_tensor = width // _of_layer(shapes, VISION_LAYERS, "self_attention.linear_proj.weight")[1]
        keys = _rows(shapes, "self_attention.linear_qkv.weight", tensor) - hidden
        if keys < 0:
            keys = 2 * tensor * _of_layer(shapes, TEXT_LAYERS, "self_attention.k_proj.weight")[0]
        gated = not any("input_layernorm.bias" in name for name in shapes if name.startswith(VISION_LAYERS))
        if keys // 2 % _HEAD_DIM or hidden % _HEAD_DIM or width % _VISION_HEAD_DIM:
            raise KeyError("the widths of its heads")
        return Architecture(
            family="qwen2_5_vl" if gated else "qwen2_vl",
            layers=text.total,
            hidden=hidden,
            heads=hidden // _HEAD_DIM,
            kv_heads=keys // 2 // _HEAD_DIM,
            ffn=tensor * _of_layer(shapes, TEXT_LAYERS, "mlp.linear_fc2.weight")[1],
            vocab=tensor * shapes[_EMBEDDING][0],
            tied=_HEAD not in shapes or _same_head(files),
            vision_layers=vision.total,
            vision_hidden=width,
            vision_heads=width // _VISION_HEAD_DIM,
            vision_ffn=vision_tensor * _of_layer(shapes, VISION_LAYERS, "mlp.linear_fc2.weight")[1],
            patch=patch,
            merged=shapes["image_encoder.projector.encoder.linear_fc2.weight"][1] * vision_tensor,
        )
    except KeyError as error:
        raise SightlineError(
            f"{files.folder} does not show {error.args[0]}; give the model's folder with --hf-dir"
        ) from error


def is_wan(files: MegatronFiles) -> bool:
    """Whether the checkpoint is of Wan's transformer."""
    return any(place.name.startswith("blocks.0.self_attn.proj_q.") for place in files.entries)


def _same_head(files: MegatronFiles) -> bool:
    """Whether head and embedding are the same numbers; the copy of a tied model is."""
    ends = {name: [place for place in files.entries if place.name == name] for name in (_EMBEDDING, _HEAD)}
    if len(ends[_EMBEDDING]) != len(ends[_HEAD]):
        return False
    pairs = zip(sorted(ends[_EMBEDDING], key=_tensor), sorted(ends[_HEAD], key=_tensor), strict=True)
    return all(same_bytes(files.entries[one], files.entries[other], files.descriptor) for one, other in pairs)


def _tensor(place: Place) -> int:
    return place.rank.tensor


def _stages(files: MegatronFiles, prefix: str) -> Stages:
    """Layers of one part on each stage, by the numbers in their names."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    found: dict[tuple[int, int], set[int]] = {}
    for place in files.entries:
        match = pattern.match(place.name)
        if match:
            found.setdefault((place.chunk, place.rank.pipeline), set()).add(int(match[1]))
    for (chunk, rank), layers in found.items():
        if layers != set(range(len(layers))):
            raise SightlineError(
                f"{files.folder}: chunk {chunk} of pipeline rank {rank} has the layers {sorted(layers)} under "
                f"{prefix}, which are not all from 0 on"
            )
    if not found:
        raise SightlineError(f"{files.folder} has no tensors under {prefix}; it holds another kind of model")
    return Stages(
        tuple(
            tuple(len(found.get((chunk, rank), ())) for rank in range(files.pipeline_ranks))
            for chunk in range(files.chunks)
        )
    )


def _ranks(files: MegatronFiles, prefix: str, name: str, columns: int) -> int:
    """Over how many ranks a part is cut, by the columns of a map that is cut by columns."""
    shapes = {place.name: entry.shape for place, entry in files.entries.items()}
    try:
        width = _of_layer(shapes, prefix, name)[1]
    except KeyError as error:
        raise SightlineError(f"{files.folder} has no {error.args[0]}") from error
    if not width or columns % width:
        raise SightlineError(
            f"{files.folder}: {prefix}0.{name} has {width} columns, which is no part of the model's {columns}; "
            "was it converted from another model?"
        )
    return columns // width


def _of_layer(shapes: dict[str, tuple[int, ...]], prefix: str, name: str) -> tuple[int, ...]:
    return shapes[f"{prefix}0.{name}"]


def _rows(shapes: dict[str, tuple[int, ...]], name: str, ranks: int) -> int:
    return ranks * shapes.get(f"{TEXT_LAYERS}0.{name}", (0,))[0]
