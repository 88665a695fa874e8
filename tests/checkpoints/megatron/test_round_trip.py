"""Random models and layouts: there and back is the same bit for bit, and cutting anew is converting anew."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from megatron_parts import FAMILIES, assert_same, make_config, make_folder

from sightline.checkpoints.megatron.architecture import Architecture
from sightline.checkpoints.megatron.check import verify, verify_resplit
from sightline.checkpoints.megatron.convert import hf_to_mm, mm_to_hf, resplit
from sightline.checkpoints.megatron.layout import Layout
from sightline.checkpoints.megatron.planning import balance
from sightline.checkpoints.megatron.stages import Pipeline, Stages
from sightline.errors import SightlineError

KINDS = {"norm": torch.float32, "mlp": torch.float16, "attn": torch.float32, "embed_tokens": torch.float16}


@dataclass(frozen=True)
class Case:
    config: dict[str, Any]
    dtypes: dict[str, torch.dtype]
    first: Layout
    second: Layout
    names: str


@st.composite
def pipelines(draw: st.DrawFn, text_layers: int, vision_layers: int) -> Pipeline:
    """The tower up to some stage, the language model from there on, anyhow; stages may stay empty."""
    ranks, chunks = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    stages = ranks * chunks
    meet = draw(st.integers(0, stages - 1))

    def stages_of(layers: int, first: int, last: int) -> Stages:
        places = draw(st.lists(st.integers(first, last), min_size=layers, max_size=layers))
        counts = [places.count(stage) for stage in range(stages)]
        return Stages(tuple(tuple(counts[row * ranks : (row + 1) * ranks]) for row in range(chunks)))

    return Pipeline(stages_of(text_layers, meet, stages - 1), stages_of(vision_layers, 0, meet))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    text, vision = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    config = make_config(
        draw(st.sampled_from(FAMILIES)), tied=draw(st.booleans()), layers=text, vision_layers=vision
    )
    canonical = draw(st.booleans())

    def layout() -> Layout:
        tensor, vision_tensor = (draw(st.sampled_from((1, 2, 4))) for _ in range(2))
        return Layout(draw(pipelines(text, vision)), tensor, vision_tensor, canonical)

    dtypes = {part: KINDS[part] for part in draw(st.sets(st.sampled_from(sorted(KINDS))))}
    return Case(config, dtypes, layout(), layout(), draw(st.sampled_from(("old", "new"))))


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.pt")}


@settings(max_examples=10, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases())
def test_there_and_back_and_cut_anew(case: Case) -> None:
    # Waiting for the disk is most of the time, and not what is asked here.
    with tempfile.TemporaryDirectory() as name, patch("os.fsync"):
        root = Path(name)
        tensors = make_folder(root / "hf", case.config, dtypes=case.dtypes, names=case.names)
        hf_to_mm(root / "hf", root / "mm", case.first)
        mm_to_hf(root / "mm", root / "hf", root / "back", names=case.names, max_shard_bytes=9000)
        assert_same(root / "back", tensors, case.names)
        resplit(root / "mm", root / "anew", case.second, template=root / "hf")
        hf_to_mm(root / "hf", root / "fresh", case.second)
        ours, theirs = files_of(root / "anew"), files_of(root / "fresh")
        assert len(ours) == case.second.ranks * case.second.pipeline.text.ranks
        assert ours == theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_the_proof_finds_one_wrong_number(tmp_path: Path, family: str) -> None:
    make_folder(tmp_path / "hf", make_config(family))
    layout = Layout(Pipeline(Stages(((1, 3),)), Stages(((4, 0),))), 2, 2)
    hf_to_mm(tmp_path / "hf", tmp_path / "mm", layout)
    hf_to_mm(tmp_path / "hf", tmp_path / "other", replace(layout, tensor=1))
    assert verify(tmp_path / "hf", tmp_path / "mm") > 50
    assert verify_resplit(tmp_path / "mm", tmp_path / "other", tmp_path / "hf") > 50
    file = tmp_path / "mm/release/mp_rank_01_001/model_optim_rng.pt"
    content = torch.load(file, weights_only=True)
    content["model"]["text_decoder.decoder.layers.2.self_attention.linear_qkv.weight"][3, 5] += 1
    torch.save(content, file)
    with pytest.raises(SightlineError, match=r"does not give text.layers.3.self_attn.._proj.weight .* back"):
        verify(tmp_path / "hf", tmp_path / "mm")
    with pytest.raises(SightlineError, match=r"text.layers.3.self_attn.._proj.weight"):
        verify_resplit(tmp_path / "mm", tmp_path / "other", tmp_path / "hf")


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("pp", [1, 2, 3, 5])
def test_balanced_stages_are_as_light_as_can_be(tied: bool, pp: int) -> None:
    model = Architecture.of(make_config(tied=tied, layers=5, vision_layers=3), "test")
    found = balance(model, pp)
    found.check(5, 3)
    sizes = {name: torch.Size(shape).numel() for name, shape in model.tensors().items()}

    def heaviest(pipeline: Pipeline) -> int:
        layout, worst = Layout(pipeline), 0
        for rank in range(pp):
            names = {
                source
                for one in layout.placed(model)
                if one.place.rank.pipeline == rank
                for source in one.sources
            }
            worst = max(worst, sum(sizes[name] for name in names))
        return worst

    best = heaviest(found)
    # Every other way that fills each stage, tower first.
    row = [("v", 1)] * 3 + [("t", 1)] * 5

    def ways(left: int, parts: int) -> list[list[int]]:
        if parts == 1:
            return [[left]]
        return [[one, *rest] for one in range(1, left - parts + 2) for rest in ways(left - one, parts - 1)]

    for way in ways(len(row), pp):
        text, vision, begin = [], [], 0
        for size in way:
            part = row[begin : begin + size]
            text.append(sum(kind == "t" for kind, _ in part))
            vision.append(size - text[-1])
            begin += size
        assert best <= heaviest(Pipeline(Stages((tuple(text),)), Stages((tuple(vision),))))
