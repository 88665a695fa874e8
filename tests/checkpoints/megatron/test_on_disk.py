"""Names of files and what is in them, as MindSpeed-MM writes and expects them."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from megatron_parts import assert_same, make_config, make_folder, make_layout, rank_file

from sightline.checkpoints.megatron.convert import hf_to_mm, mm_to_hf, resplit

HEAD = "text_decoder.output_layer.weight"
EMBEDDING = "text_decoder.embedding.word_embeddings.weight"


def ranks(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.rglob("model_optim_rng.pt"))


def layers(model: dict[str, torch.Tensor], prefix: str) -> set[int]:
    found = (re.match(re.escape(prefix) + r"\.(\d+)\.", name) for name in model)
    return {int(match[1]) for match in found if match}


TEXT, TOWER = "text_decoder.decoder.layers", "image_encoder.encoder.blocks.layers"


def test_one_rank(tmp_path: Path) -> None:
    make_folder(tmp_path / "hf", make_config(tied=True))
    hf_to_mm(tmp_path / "hf", tmp_path / "mm", make_layout("4", "4"))
    assert ranks(tmp_path / "mm") == ["mp_rank_00"]
    assert (tmp_path / "mm/latest_checkpointed_iteration.txt").read_text() == "release"
    content = rank_file(tmp_path / "mm", "mp_rank_00")
    assert set(content) == {"model", "checkpoint_version"}
    assert content["checkpoint_version"] == 3.0
    assert HEAD not in content["model"]
    assert {path.name for path in (tmp_path / "mm").iterdir()} == {
        "release",
        "latest_checkpointed_iteration.txt",
        "sightline-manifest.json",
    }


def test_ranks_and_what_stands_on_them(tmp_path: Path) -> None:
    make_folder(tmp_path / "hf", make_config(tied=True))
    hf_to_mm(tmp_path / "hf", tmp_path / "mm", make_layout("1,3", "4,0", tp=2))
    assert ranks(tmp_path / "mm") == [f"mp_rank_0{tensor}_00{pipe}" for tensor in (0, 1) for pipe in (0, 1)]
    for tensor in (0, 1):
        one = rank_file(tmp_path / "mm", f"mp_rank_0{tensor}_000")["model"]
        two = rank_file(tmp_path / "mm", f"mp_rank_0{tensor}_001")["model"]
        assert (layers(one, TOWER), layers(two, TOWER)) == ({0, 1, 2, 3}, set())
        assert (layers(one, TEXT), layers(two, TEXT)) == ({0}, {0, 1, 2})  # counted anew on each stage
        assert EMBEDDING in one
        assert EMBEDDING not in two
        assert "image_encoder.projector.layernorm.weight" in one
        assert "text_decoder.decoder.final_layernorm.weight" in two
        # Tied and several stages: the last has a copy of the first's embedding.
        assert torch.equal(one[EMBEDDING], two[HEAD])
        assert HEAD not in one


def test_virtual_stages(tmp_path: Path) -> None:
    make_folder(tmp_path / "hf", make_config(layers=6))
    hf_to_mm(tmp_path / "hf", tmp_path / "mm", make_layout("[[0,1],[2,3]]", "[[2,2],[0,0]]"))
    one, two = (rank_file(tmp_path / "mm", f"mp_rank_00_00{rank}") for rank in range(2))
    for content in (one, two):
        assert set(content) == {"model0", "model1", "checkpoint_version"}
    assert [layers(content[chunk], TEXT) for content in (one, two) for chunk in ("model0", "model1")] == [
        set(),
        {0, 1},
        {0},
        {0, 1, 2},
    ]
    assert [layers(content["model0"], TOWER) for content in (one, two)] == [{0, 1}, {0, 1}]
    assert "image_encoder.encoder.patch_embed.proj.weight" in one["model0"]
    assert "image_encoder.projector.layernorm.weight" in two["model0"]
    assert EMBEDDING in two["model0"]
    assert HEAD in two["model1"]


def test_stages_without_a_layer_have_files_too(tmp_path: Path) -> None:
    config = make_config(layers=2, vision_layers=1)
    tensors = make_folder(tmp_path / "hf", config)
    hf_to_mm(tmp_path / "hf", tmp_path / "mm", make_layout("[[0,0,1],[1,0,0]]", "[[1,0,0],[0,0,0]]"))
    assert rank_file(tmp_path / "mm", "mp_rank_00_001") == {
        "model0": {},
        "model1": {},
        "checkpoint_version": 3.0,
    }
    mm_to_hf(tmp_path / "mm", tmp_path / "hf", tmp_path / "back")
    assert_same(tmp_path / "back", tensors)


# What MindSpeed-MM 26 loses without a word: 28, 12 and 7 layers, and what stands behind them.
LOST = {
    "[[0,0,14,14]]": "[[16,16,0,0]]",
    "[[0,4,12,12]]": "[[32,0,0,0]]",
    "[[0,0,0,1],[4,4,4,4],[4,3,2,2]]": "[[10,10,10,2],[0,0,0,0],[0,0,0,0]]",
}


@pytest.mark.parametrize("text", LOST)
def test_a_language_model_that_begins_behind_the_first_stage_is_whole(tmp_path: Path, text: str) -> None:
    config = make_config(layers=28, vision_layers=32, hidden=16, heads=4, kv_heads=2, ffn=8, vocab=16)
    tensors = make_folder(tmp_path / "hf", config)
    layout = make_layout(text, LOST[text])
    hf_to_mm(tmp_path / "hf", tmp_path / "mm", layout)
    counts = []
    for chunk in range(layout.chunks):
        for rank in range(4):
            content = rank_file(tmp_path / "mm", f"mp_rank_00_00{rank}")
            counts.append(len(layers(content[f"model{chunk}" if layout.chunks > 1 else "model"], TEXT)))
    assert counts == [number for row in json.loads(text) for number in row]
    assert HEAD in content[f"model{chunk}" if layout.chunks > 1 else "model"]
    mm_to_hf(tmp_path / "mm", tmp_path / "hf", tmp_path / "back")
    assert_same(tmp_path / "back", tensors)


def test_the_manifest_has_the_sums_of_what_is_there(tmp_path: Path) -> None:
    make_folder(tmp_path / "hf", make_config())
    hf_to_mm(tmp_path / "hf", tmp_path / "mm", make_layout("1,3", "4,0", tp=2))
    mm_to_hf(tmp_path / "mm", tmp_path / "hf", tmp_path / "back", max_shard_bytes=20_000)
    manifest = json.loads((tmp_path / "mm/sightline-manifest.json").read_text())
    assert manifest["layout"] == "tp 2, pp-llm [[1,3]], pp-vit [[4,0]]"
    assert len(manifest["files"]) == 4
    for file, tensors in manifest["files"].items():
        content = torch.load(tmp_path / "mm" / file, weights_only=True)
        for keys, said in tensors.items():
            tensor = content["model"][keys.partition("/")[2]]
            data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
            assert said == {
                "dtype": "BF16",
                "shape": list(tensor.shape),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        assert len(tensors) == len(content["model"])
    back = json.loads((tmp_path / "back/sightline-manifest.json").read_text())["files"]
    index = json.loads((tmp_path / "back/model.safetensors.index.json").read_text())["weight_map"]
    assert {name: file for file, tensors in back.items() for name in tensors} == index


def test_a_tied_head_comes_and_goes_with_the_stages(tmp_path: Path) -> None:
    tensors = make_folder(tmp_path / "hf", make_config(tied=True))
    one, two = make_layout("4", "4"), make_layout("1,3", "4,0")
    hf_to_mm(tmp_path / "hf", tmp_path / "one", one)
    resplit(tmp_path / "one", tmp_path / "two", two, template=tmp_path / "hf")
    assert HEAD in rank_file(tmp_path / "two", "mp_rank_00_001")["model"]
    resplit(tmp_path / "two", tmp_path / "again", one, template=tmp_path / "hf")
    assert HEAD not in rank_file(tmp_path / "again", "mp_rank_00")["model"]
    # MindSpeed-MM's own resplit leaves the copy on one stage, and adds none on two; both are read.
    file = tmp_path / "again/release/mp_rank_00/model_optim_rng.pt"
    content = torch.load(file, weights_only=True)
    content["model"][HEAD] = content["model"][EMBEDDING]
    torch.save(content, file)
    mm_to_hf(tmp_path / "again", tmp_path / "hf", tmp_path / "back")
    assert_same(tmp_path / "back", tensors)
    file = tmp_path / "two/release/mp_rank_00_001/model_optim_rng.pt"
    content = torch.load(file, weights_only=True)
    del content["model"][HEAD]
    torch.save(content, file)
    mm_to_hf(tmp_path / "two", tmp_path / "hf", tmp_path / "back2")
    assert_same(tmp_path / "back2", tensors)
