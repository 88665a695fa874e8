"""The benchmark of Wan's parts runs, and tells of everything it says it does."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import video_wan
from wan import shapes

from sightline.video.wan_blocks import use_operators


def test_the_benchmark_of_a_small_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "found.json"
    parts = "attention,forms,profile,generation,text,ulysses"
    options = [
        "--tiny",
        "--no-compile",
        "--rounds",
        "1",
        "--device",
        "cpu",
        "--dtype",
        "fp32",
        "--only",
        parts,
    ]
    monkeypatch.setattr(sys, "argv", ["video_wan.py", *options, "--json", str(file)])
    video_wan.main()
    found = json.loads(file.read_text())
    assert set(found["attention"]) == {"self", "cross", "self, 1 of 4 cards"}
    assert set(found["forms"]) == {"diffusers", "operators"}
    assert set(found["ulysses"]) == {"2", "4"}
    whole, parts_of = found["profile"]["whole"], found["profile"]["parts"]
    assert sum(parts_of.values()) == pytest.approx(whole)
    assert all(seconds > 0 for seconds in parts_of.values())
    assert len(parts_of) == 8
    runs = found["generation"]
    assert runs["block cache"]["operations"] < runs["exact"]["operations"]
    assert runs["attention cache"]["operations"] < runs["exact"]["operations"]
    for each in runs.values():
        assert each["share"] == pytest.approx(each["operations"] / each["seconds"] / found["ceiling"])
    said = capsys.readouterr().out
    assert "2 cards" in said
    assert "chosen" in said


def test_models_share_their_weights_and_nothing_else() -> None:
    model = shapes.make_transformer(shapes.SHAPES["tiny"], torch.device("cpu"), torch.bfloat16)
    other = shapes.sharing(model)
    assert {id(each) for each in other.parameters()} == {id(each) for each in model.parameters()}
    use_operators(other)
    assert type(other.blocks[0]) is not type(model.blocks[0])
    block = model.blocks[0]
    assert block.attn1.to_q.weight.dtype == torch.bfloat16
    assert block.scale_shift_table.dtype == block.norm2.weight.dtype == torch.float32
    assert model.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    assert model.rope.freqs_cos.dtype == torch.float32
