"""Rows written by hand: where each row of a Hugging Face tensor stands in MindSpeed-MM's, and in which file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_parts import make_config, make_layout, rank_file
from safetensors.torch import load_file, save_file

from sightline.checkpoints.megatron.convert import hf_to_mm

TEXT = "text_decoder.decoder.layers.0."
TOWER = "image_encoder.encoder.blocks.layers.0."


def rows(*numbers: int, width: int) -> torch.Tensor:
    """A row of equal numbers for each."""
    return torch.tensor([[float(number)] * width for number in numbers])


def make(folder: Path, tensors: dict[str, torch.Tensor], **settings: Any) -> None:
    from megatron_parts import make_folder

    make_folder(folder, make_config(**settings), dtypes={"": torch.float32})
    file = folder / "model.safetensors"
    stored = load_file(file)
    for name, tensor in tensors.items():
        assert stored[name].shape == tensor.shape, name
    save_file({**stored, **tensors}, file)


LANGUAGE = {
    "model.layers.0.self_attn.q_proj.weight": rows(1, 2, 3, 4, width=4),
    "model.layers.0.self_attn.k_proj.weight": rows(11, 12, width=4),
    "model.layers.0.self_attn.v_proj.weight": rows(21, 22, width=4),
    "model.layers.0.self_attn.q_proj.bias": torch.tensor([1.0, 2, 3, 4]),
    "model.layers.0.self_attn.k_proj.bias": torch.tensor([11.0, 12]),
    "model.layers.0.self_attn.v_proj.bias": torch.tensor([21.0, 22]),
    "model.layers.0.self_attn.o_proj.weight": rows(1, 2, 3, 4, width=4).T.contiguous(),
    "model.layers.0.mlp.gate_proj.weight": rows(1, 2, 3, 4, width=4),
    "model.layers.0.mlp.up_proj.weight": rows(11, 12, 13, 14, width=4),
    "model.layers.0.mlp.down_proj.weight": rows(1, 2, 3, 4, width=4).T.contiguous(),
}
VISION = {
    "visual.blocks.0.attn.qkv.weight": rows(1, 2, 3, 4, 11, 12, 13, 14, 21, 22, 23, 24, width=4),
    "visual.blocks.0.attn.qkv.bias": torch.tensor([1.0, 2, 3, 4, 11, 12, 13, 14, 21, 22, 23, 24]),
    "visual.blocks.0.mlp.gate_proj.weight": rows(1, 2, 3, 4, width=4),
    "visual.blocks.0.mlp.up_proj.weight": rows(11, 12, 13, 14, width=4),
    "visual.blocks.0.mlp.gate_proj.bias": torch.tensor([1.0, 2, 3, 4]),
    "visual.blocks.0.mlp.up_proj.bias": torch.tensor([11.0, 12, 13, 14]),
}
# Two groups of two query heads, heads of one row; a tower of two heads of two rows.
SMALL: dict[str, Any] = {
    "layers": 1,
    "vision_layers": 1,
    "hidden": 4,
    "heads": 4,
    "kv_heads": 2,
    "ffn": 4,
    "vision_hidden": 4,
    "vision_heads": 2,
    "vision_ffn": 4,
}


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    make(tmp_path / "hf", {**LANGUAGE, **VISION}, **SMALL)
    return tmp_path / "hf"


def firsts(tensor: torch.Tensor) -> list[float]:
    """The number that a row is made of."""
    if tensor.dim() == 2:
        assert (tensor == tensor[:, :1]).all()
        tensor = tensor[:, 0]
    return tensor.tolist()


def test_queries_keys_and_values_of_a_group_stand_together(hf: Path, tmp_path: Path) -> None:
    hf_to_mm(hf, tmp_path / "mm", make_layout("1", "1"))
    model = rank_file(tmp_path / "mm", "mp_rank_00")["model"]
    for kind in ("weight", "bias"):
        found = firsts(model[f"{TEXT}self_attention.linear_qkv.{kind}"])
        assert found == [1, 2, 11, 21, 3, 4, 12, 22]
        found = firsts(model[f"{TOWER}self_attention.linear_qkv.{kind}"])
        assert found == [1, 2, 11, 12, 21, 22, 3, 4, 13, 14, 23, 24]
        assert firsts(model[f"{TOWER}mlp.linear_fc1.{kind}"]) == [1, 2, 3, 4, 11, 12, 13, 14]
    assert firsts(model[f"{TEXT}mlp.linear_fc1.weight"]) == [1, 2, 3, 4, 11, 12, 13, 14]


def test_two_ranks_share_groups_and_both_halves(hf: Path, tmp_path: Path) -> None:
    hf_to_mm(hf, tmp_path / "mm", make_layout("1", "1", tp=2))
    one, two = (rank_file(tmp_path / "mm", f"mp_rank_0{rank}")["model"] for rank in range(2))
    for kind in ("weight", "bias"):
        name = f"{TEXT}self_attention.linear_qkv.{kind}"
        assert (firsts(one[name]), firsts(two[name])) == ([1, 2, 11, 21], [3, 4, 12, 22])
        name = f"{TOWER}self_attention.linear_qkv.{kind}"
        assert firsts(one[name]) == [1, 2, 11, 12, 21, 22]
        assert firsts(two[name]) == [3, 4, 13, 14, 23, 24]
        name = f"{TOWER}mlp.linear_fc1.{kind}"
        assert (firsts(one[name]), firsts(two[name])) == ([1, 2, 11, 12], [3, 4, 13, 14])
    name = f"{TEXT}mlp.linear_fc1.weight"
    assert (firsts(one[name]), firsts(two[name])) == ([1, 2, 11, 12], [3, 4, 13, 14])
    for name in ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight"):
        assert one[TEXT + name].tolist() == [[1, 2]] * 4
        assert two[TEXT + name].tolist() == [[3, 4]] * 4
    # What is on every rank whole.
    for name in (
        f"{TEXT}input_layernorm.weight",
        f"{TEXT}pre_mlp_layernorm.weight",
        f"{TOWER}self_attention.linear_proj.bias",
        f"{TOWER}mlp.linear_fc2.bias",
        "image_encoder.encoder.patch_embed.proj.weight",
        "image_encoder.projector.layernorm.weight",
        "image_encoder.projector.encoder.linear_fc2.bias",
        "text_decoder.decoder.final_layernorm.weight",
    ):
        assert torch.equal(one[name], two[name])
    stored = load_file(hf / "model.safetensors")
    for ours, theirs, dim in (
        ("text_decoder.embedding.word_embeddings.weight", "model.embed_tokens.weight", 0),
        ("text_decoder.output_layer.weight", "lm_head.weight", 0),
        ("image_encoder.projector.encoder.linear_fc1.weight", "visual.merger.mlp.0.weight", 0),
        ("image_encoder.projector.encoder.linear_fc1.bias", "visual.merger.mlp.0.bias", 0),
        ("image_encoder.projector.encoder.linear_fc2.weight", "visual.merger.mlp.2.weight", 1),
    ):
        assert torch.equal(torch.cat([one[ours], two[ours]], dim), stored[theirs])


def test_canonical_keeps_maps_apart(hf: Path, tmp_path: Path) -> None:
    hf_to_mm(hf, tmp_path / "mm", make_layout("1", "1", tp=2, vision_tp=1, canonical=True))
    one, two = (rank_file(tmp_path / "mm", f"mp_rank_0{rank}")["model"] for rank in range(2))
    assert firsts(two[f"{TEXT}self_attention.q_proj.weight"]) == [3, 4]
    assert firsts(two[f"{TEXT}self_attention.k_proj.bias"]) == [12]
    assert firsts(one[f"{TEXT}self_attention.v_proj.weight"]) == [21]
    assert firsts(one[f"{TEXT}mlp.gate_proj.weight"]) == [1, 2]
    assert firsts(two[f"{TEXT}mlp.up_proj.weight"]) == [13, 14]
    # The tower's stay in Hugging Face's order; with one rank of its own, both files have the whole.
    for model in (one, two):
        assert firsts(model[f"{TOWER}self_attention.linear_qkv.weight"]) == [
            *range(1, 5),
            *range(11, 15),
            *range(21, 25),
        ]
        assert firsts(model[f"{TOWER}mlp.gate_proj.bias"]) == [1, 2, 3, 4]
    assert not any("linear_qkv" in name for name in one if name.startswith(TEXT))
