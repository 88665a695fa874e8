"""Small models in Hugging Face's layout, made of a config.json and random tensors, to be cut as MindSpeed-MM does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sightline.checkpoints.megatron.architecture import Architecture
from sightline.checkpoints.megatron.layout import Layout
from sightline.checkpoints.megatron.stages import Pipeline, Stages
from sightline.checkpoints.names import OLD, spelled
from sightline.checkpoints.store import Store

FAMILIES = ("qwen2_vl", "qwen2_5_vl")


def make_config(
    family: str = "qwen2_5_vl",
    *,
    tied: bool = False,
    layers: int = 4,
    vision_layers: int = 4,
    hidden: int = 32,
    heads: int = 8,
    kv_heads: int = 4,
    ffn: int = 48,
    vocab: int = 64,
    vision_hidden: int = 16,
    vision_heads: int = 4,
    vision_ffn: int = 24,
) -> dict[str, Any]:
    """A config.json as the published models have it, text settings at the top."""
    vision: dict[str, Any] = {
        "depth": vision_layers,
        "num_heads": vision_heads,
        "patch_size": 2,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "in_chans": 3,
    }
    if family == "qwen2_vl":
        vision |= {"embed_dim": vision_hidden, "mlp_ratio": 4, "hidden_size": hidden}
    else:
        vision |= {"hidden_size": vision_hidden, "intermediate_size": vision_ffn, "out_hidden_size": hidden}
    return {
        "model_type": family,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "vision_config": vision,
    }


def make_folder(
    folder: Path,
    config: dict[str, Any],
    *,
    names: str = OLD,
    seed: int = 0,
    dtypes: dict[str, torch.dtype] | None = None,
) -> dict[str, torch.Tensor]:
    """Write a model of this config.json; gives its tensors by canonical name.

    Args:
        dtypes: of tensors whose names contain a key; bfloat16 without it.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in Architecture.of(config, "test").tensors().items():
        dtype = next((kind for part, kind in (dtypes or {}).items() if part in name), torch.bfloat16)
        tensors[name] = torch.randn(shape, generator=random).to(dtype)
    save_file(
        {spelled(name, names): tensor for name, tensor in tensors.items()}, folder / "model.safetensors"
    )
    return tensors


def make_layout(
    text: str, vision: str, tp: int = 1, vision_tp: int | None = None, *, canonical: bool = False
) -> Layout:
    """As the command line's options say it."""
    pipeline = Pipeline(Stages.parse(text, "--pp-llm"), Stages.parse(vision, "--pp-vit"))
    return Layout(pipeline, tp, vision_tp or tp, canonical)


def rank_file(folder: Path, name: str) -> dict[str, Any]:
    """What is in one rank's file, as torch reads it."""
    path = folder / "release" / name / "model_optim_rng.pt"
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def assert_same(folder: Path, tensors: dict[str, torch.Tensor], names: str = OLD) -> None:
    """A folder holds these tensors (canonical names) and no others, bit for bit."""
    store = Store(folder)
    assert set(store) == {spelled(name, names) for name in tensors}
    for name, tensor in tensors.items():
        found = store.get(spelled(name, names))
        assert found.dtype == tensor.dtype, name
        assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8)), name
