"""Wan's transformer between diffusers and MindSpeed-MM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron_parts import rank_file
from safetensors.torch import load_file, save_file

from sightline.checkpoints.megatron.check import verify_wan, verify_wan_resplit
from sightline.checkpoints.megatron.stages import Stages
from sightline.checkpoints.megatron.wan_convert import wan_hf_to_mm, wan_mm_to_hf, wan_resplit
from sightline.errors import SightlineError, UsageError

diffusers = pytest.importorskip("diffusers")


def make(folder: Path, *, image: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    settings: dict[str, Any] = (
        {"image_dim": 8, "added_kv_proj_dim": 16, "pos_embed_seq_len": 6} if image else {}
    )
    model = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=8,
        ffn_dim=16,
        num_layers=4,
        cross_attn_norm=True,
        **settings,
    )
    model.save_pretrained(folder)
    return load_file(folder / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("image", [False, True])
@pytest.mark.parametrize("stages", ["4", "1,3", "[[1,1],[2,0]]", "2,0,2"])
def test_there_and_back(tmp_path: Path, image: bool, stages: str) -> None:
    tensors = make(tmp_path / "wan/transformer", image=image)
    wan_hf_to_mm(tmp_path / "wan", tmp_path / "mm", Stages.parse(stages, "--pp"))
    assert verify_wan(tmp_path / "wan", tmp_path / "mm") == len(tensors)
    wan_mm_to_hf(tmp_path / "mm", tmp_path / "wan", tmp_path / "back", max_shard_bytes=9000)
    assert len(list((tmp_path / "back").glob("diffusion_pytorch_model-*-of-*.safetensors"))) > 1
    back = diffusers.WanTransformer3DModel.from_pretrained(tmp_path / "back").state_dict()
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    wan_resplit(tmp_path / "mm", tmp_path / "anew", Stages.parse("3,1", "--pp"))
    wan_hf_to_mm(tmp_path / "wan", tmp_path / "fresh", Stages.parse("3,1", "--pp"))
    assert verify_wan_resplit(tmp_path / "mm", tmp_path / "anew") == len(tensors)
    for file in sorted((tmp_path / "fresh").rglob("*.pt")):
        ours = torch.load(tmp_path / "anew" / file.relative_to(tmp_path / "fresh"), weights_only=True)[
            "model"
        ]
        theirs = torch.load(file, weights_only=True)["model"]
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_names(tmp_path: Path) -> None:
    make(tmp_path / "wan", image=True)
    wan_hf_to_mm(tmp_path / "wan", tmp_path / "mm", Stages.parse("2,2", "--pp"))
    one, two = (set(rank_file(tmp_path / "mm", f"mp_rank_00_00{rank}")["model"]) for rank in range(2))
    blocks = {
        *(f"self_attn.{part}.weight" for part in ("q_norm", "k_norm")),
        *(f"self_attn.proj_{part}.{kind}" for part in ("q", "k", "v", "out") for kind in ("weight", "bias")),
        *(f"cross_attn.{part}.weight" for part in ("q_norm", "k_norm", "k_norm_img")),
        *(f"cross_attn.proj_{part}.{kind}" for part in ("q", "k", "v", "out") for kind in ("weight", "bias")),
        *(f"cross_attn.{part}_img.{kind}" for part in ("k", "v") for kind in ("weight", "bias")),
        *(f"{part}.{kind}" for part in ("ffn.0", "ffn.2", "norm3") for kind in ("weight", "bias")),
        "modulation",
    }
    inside = {f"blocks.{number}.{name}" for number in (0, 1) for name in blocks}
    before = {
        f"{part}.{kind}"
        for part in (
            "patch_embedding",
            *(f"text_embedding.linear_{number}" for number in (1, 2)),
            *(f"time_embedding.{number}" for number in (0, 2)),
            "time_projection.1",
            *(f"img_emb.proj.{number}" for number in (0, 1, 3, 4)),
        )
        for kind in ("weight", "bias")
    }
    assert one == inside | before | {"img_emb.emb_pos"}
    assert two == inside | {"head.modulation", "head.head.weight", "head.head.bias"}


def test_what_is_refused(tmp_path: Path) -> None:
    tensors = make(tmp_path / "wan", image=False)
    with pytest.raises(UsageError, match=r"--pp \[\[2,3\]\] holds 5 blocks, but the model has 4"):
        wan_hf_to_mm(tmp_path / "wan", tmp_path / "mm", Stages.parse("2,3", "--pp"))
    wan_hf_to_mm(tmp_path / "wan", tmp_path / "mm", Stages.parse("2,2", "--pp"))
    config = json.loads((tmp_path / "wan/config.json").read_text())
    (tmp_path / "wan/config.json").write_text(json.dumps({**config, "num_layers": 5}))
    with pytest.raises(SightlineError, match=r"has 4 blocks, but .* says num_layers 5"):
        wan_mm_to_hf(tmp_path / "mm", tmp_path / "wan", tmp_path / "back")
    with pytest.raises(SightlineError, match=r"says num_layers 5, but its weights have the blocks of 4"):
        wan_hf_to_mm(tmp_path / "wan", tmp_path / "other", Stages.parse("5", "--pp"))
    (tmp_path / "wan/config.json").write_text(json.dumps(config))
    save_file(
        {**tensors, "blocks.0.extra": torch.ones(1)}, tmp_path / "wan/diffusion_pytorch_model.safetensors"
    )
    with pytest.raises(SightlineError, match=r"blocks\.0\.extra, for which MindSpeed-MM's Wan has no place"):
        wan_hf_to_mm(tmp_path / "wan", tmp_path / "other", Stages.parse("4", "--pp"))
    file = tmp_path / "mm/release/mp_rank_00_001/model_optim_rng.pt"
    content = torch.load(file, weights_only=True)
    content["model"].pop("head.head.bias")
    torch.save(content, file)
    with pytest.raises(SightlineError, match=r"lacks proj_out\.bias"):
        wan_mm_to_hf(tmp_path / "mm", tmp_path / "wan", tmp_path / "back")
    assert not (tmp_path / "back").exists()
