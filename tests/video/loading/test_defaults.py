"""What a model generates untold: by its size, and by its folder's own word."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from wan_folder import make_wan_folder

from sightline.errors import SightlineError
from sightline.video.components import load_components
from sightline.video.loading.defaults import NEGATIVE_PROMPT, Defaults, defaults_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wan_folder(tmp_path_factory.mktemp("wan") / "wan")


def of_size(heads: int, flow_shift: float = 3.0, **vae: Any) -> Defaults:
    from diffusers.configuration_utils import FrozenDict

    stages = {"dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True], "patch_size": None} | vae
    transformer = {"num_attention_heads": heads, "attention_head_dim": 128, "patch_size": (1, 2, 2)}
    transformer |= {"rope_max_seq_len": 1024}
    configs = (FrozenDict(config) for config in (transformer, stages, {"flow_shift": flow_shift}))
    return defaults_of(*(SimpleNamespace(config=config) for config in configs), None)


def test_the_sizes_of_wan() -> None:
    small, large = of_size(12), of_size(40)
    assert (small.guidance, small.shift(832, 480), small.shift(1280, 720)) == (6.0, 8.0, 8.0)
    assert (large.guidance, large.shift(832, 480), large.shift(480, 832)) == (5.0, 3.0, 3.0)
    assert (large.shift(1280, 720), large.shift(720, 1280), large.shift(624, 624)) == (5.0, 5.0, 3.0)
    for defaults in (small, large):
        assert (defaults.width, defaults.height, defaults.frames, defaults.fps) == (832, 480, 81, 16)
        assert (defaults.multiple, defaults.temporal, defaults.steps) == (16, 4, 50)
        assert (defaults.text_length, defaults.scheduler) == (512, "unipc")
        assert defaults.negative_prompt == NEGATIVE_PROMPT
    digest = hashlib.sha256(NEGATIVE_PROMPT.encode()).hexdigest()
    assert (
        digest == "ce96e0324e4b54ce4b6e867f669ca520952e1a34cc116543516b1897f0d3c47e"
    )  # of the authors' file


def test_a_model_tuned_for_a_shift_keeps_it() -> None:
    assert of_size(40, flow_shift=7.0).shift(832, 480) == 7.0
    assert of_size(12, flow_shift=5.0).shift(832, 480) == 5.0
    assert of_size(40, flow_shift=1.0).shift(832, 480) == 3.0


def test_sizes_are_rounded_to_what_the_model_has() -> None:
    odd = of_size(40, dim_mult=[1, 2, 2, 4, 4, 4], temperal_downsample=[True, True, True, False, False])
    assert (odd.multiple, odd.temporal) == (64, 8)
    assert (odd.width, odd.height, odd.frames) == (832, 448, 81)


def test_a_folder_says_its_own(folder: Path, tmp_path: Path) -> None:
    own = {
        "name": "tiny", "width": 64, "height": 48, "frames": 17, "fps": 8, "steps": 20, "guidance": 4, "shift": 2.5,
        "negative_prompt": "", "scheduler": "euler", "text_length": 32,
    }  # fmt: skip
    (folder / "sightline.json").write_text(json.dumps(own))
    parts = load_components(folder, device="cpu", dtype="fp32")
    assert parts.name == "tiny"
    given = parts.defaults
    assert {name: getattr(given, name) for name in own if name not in ("name", "shift")} == {
        name: value for name, value in own.items() if name not in ("name", "shift")
    }
    assert given.shift(832, 480) == given.shift(1280, 720) == 2.5
    for fields, text in (
        ({"widht": 64}, "unknown field 'widht'; it may have width, height"),
        ({"width": 63}, "width 63 is no multiple of 8"),
        ({"frames": 18}, r"frames 18 are not 4n \+ 1"),
        ({"steps": 2.5}, "steps must be a whole number from 1 to 1000, not 2.5"),
        ({"steps": True}, "steps must be a whole number"),
        ({"shift": 0}, "shift must be a number"),
        ({"guidance": "5"}, "guidance must be a number from 0 to 1000, not '5'"),
        ({"guidance": float("nan")}, "guidance must be a number"),
        ({"negative_prompt": None}, "negative_prompt must be a text"),
        ({"scheduler": "ddim"}, "scheduler must be a name of unipc"),
    ):
        (folder / "sightline.json").write_text(json.dumps(fields))
        with pytest.raises(SightlineError, match=text):
            load_components(folder, device="cpu", dtype="fp32")
    (folder / "sightline.json").unlink()
