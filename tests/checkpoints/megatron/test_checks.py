"""Layouts that do not fit: each message says which number, and what would work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from megatron_parts import make_config, make_folder, make_layout

from sightline.checkpoints.megatron.architecture import Architecture
from sightline.checkpoints.megatron.convert import hf_to_mm
from sightline.checkpoints.megatron.layout import Layout
from sightline.checkpoints.megatron.planning import balance, even
from sightline.checkpoints.megatron.stages import Stages
from sightline.errors import SightlineError, UsageError


@pytest.mark.parametrize(
    ("layout", "config", "words"),
    [
        (make_layout("4", "4", 8), {}, "--tp 8 does not divide num_key_value_heads 4; 1, 2, 4 do"),
        (make_layout("4", "4", 3), {}, "--tp 3 does not divide num_key_value_heads 4"),
        (
            make_layout("4", "4", 4),
            {"heads": 6, "kv_heads": 4, "hidden": 36},
            "num_attention_heads 6; 1, 2, 3, 6",
        ),
        (make_layout("4", "4", 1, 8), {}, "--vit-tp 8 does not divide vision num_heads 4; 1, 2, 4 do"),
        (make_layout("4", "4", 2, 3), {}, "--tp is 2, but the 3 ranks must be a multiple of it"),
        (
            make_layout("4", "4", 4),
            {"ffn": 50},
            "mlp.linear_fc2.weight has 50 columns, which 4 tensor-parallel ranks cannot share evenly; 1, 2 can",
        ),
        (make_layout("4", "4", 4), {"vision_ffn": 30}, "the tower's .* has 30 (rows|columns).* 1, 2 can"),
        (make_layout("4", "4", 4), {"vocab": 70}, "word_embeddings.weight has 70 rows.*1, 2 can"),
        (make_layout("1,2", "4,0"), {}, r"--pp-llm \[\[1,2\]\] holds 3 layers, but the model has 4"),
        (make_layout("1,3", "4,1"), {}, r"--pp-vit \[\[4,1\]\] holds 5 layers, but the model has 4"),
        (
            make_layout("1,3", "4"),
            {},
            r"--pp-llm \[\[1,3\]\] has 1 x 2 stages and --pp-vit \[\[4\]\] 1 x 1; give each a number for every",
        ),
        (make_layout("[[1,1],[1,1]]", "4,0"), {}, "2 x 2 stages and --pp-vit"),
        (
            make_layout("1,3", "3,1"),
            {},
            r"--pp-vit \[\[3,1\]\] ends at stage 1, behind stage 0 where --pp-llm \[\[1,3\]\] begins",
        ),
    ],
)
def test_what_does_not_fit(tmp_path: Path, layout: Layout, config: dict[str, Any], words: str) -> None:
    make_folder(tmp_path / "hf", make_config(**config))
    with pytest.raises(UsageError, match=words):
        hf_to_mm(tmp_path / "hf", tmp_path / "mm", layout)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_nothing_is_truncated_in_the_published_tower() -> None:
    """MindSpeed-MM cuts the 3420 rows of Qwen2.5-VL-7B's tower for 8 ranks to 427 each, and loses four."""
    config = make_config(
        vision_ffn=3420, vision_heads=16, vision_hidden=1280, layers=1, vision_layers=1, kv_heads=8
    )
    model = Architecture.of(config, "test")
    with pytest.raises(UsageError, match="has 3420 (rows|columns), which 8 .*; 1, 2, 4 can"):
        make_layout("1", "1", 8).tensors(model, model.tensors())


@pytest.mark.parametrize("text", ["12,16", "[12,16]", "[[12,16]]", " [12, 16] ", "[[12],[16]]"])
def test_lists_flat_or_nested(text: str) -> None:
    found = Stages.parse(text, "--pp-llm")
    assert found.flat == (12, 16)
    assert found.chunks == (2 if "],[" in text else 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "whole numbers"),
        ("a,b", "write it like 12,16"),
        ("[1,2", "write it like"),
        ("1,-2", "whole numbers from 0"),
        ("1.5,2", "whole numbers"),
        ("[[1,2],[3]]", "2, 1 ranks; each must name every rank"),
        ("[1,[2]]", "either numbers or lists"),
        ("true,1", "whole numbers"),
    ],
)
def test_lists_that_are_none(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Stages.parse(text, "--pp-llm")


def test_too_many_stages() -> None:
    model = Architecture.of(make_config(layers=2, vision_layers=1), "test")
    with pytest.raises(SightlineError, match="3 layers cannot fill 4 stages"):
        balance(model, 4)
    with pytest.raises(SightlineError, match="2 blocks cannot fill 3 stages"):
        even(2, 3)
    with pytest.raises(UsageError, match="--auto chooses"):
        balance(model, 2, "1,1")
    assert even(30, 4).flat == (7, 7, 8, 8)


def test_a_config_that_lacks_something() -> None:
    config = make_config()
    del config["num_key_value_heads"]
    with pytest.raises(SightlineError, match="folder/config.json has no num_key_value_heads"):
        Architecture.of(config, "folder")
