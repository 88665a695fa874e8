"""The JSON beside a video: what is read is what was written, and a difference is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.errors import SightlineError
from sightline.video.builders import exact, fixed_interval
from sightline.video.request import Request
from sightline.video.setting import Setting
from sightline.video.writing.record import Record, digest_of, versions

REQUEST = Request("a cat", 64, 48, 9, 10, 5.0, 3.0, negative_prompt="a dog", seed=7)
SETTING = Setting(steps=10, weights="ab12", dtype="float32", device="cpu", versions={"torch": "2.13.0"})
PLAN = fixed_interval(Setting(steps=10), 2, start=2)


def record(**changes: Any) -> Record:
    made = Record(
        REQUEST,
        {"model": "/models/wan", "dtype": "fp32", "operators": True},
        SETTING,
        PLAN,
        parts={"text_encoder": "cd34", "vae": "ef56"},
        parallel={"processes": 1, "ulysses": 1, "cfg": 1, "vae": False},
        seconds={"text": 0.5, "denoise": 4.0, "decode": 1.25},
        operations={"denoise": {"tflop": 1.5, "share": 0.25}},
        command=("sightline", "video", "generate", "--prompt", "a cat"),
        frames_sha256="12",
        file="cat.mp4",
        file_sha256="34",
        encoding="libx264 crf 14",
        versions={"torch": "2.13.0"},
        created="2026-01-02T03:04:05Z",
    )
    return replace(made, **changes)


@pytest.mark.parametrize("plan", [PLAN, None])
def test_a_record_survives_its_file(tmp_path: Path, plan: Any) -> None:
    path = tmp_path / "cat.json"
    path.write_text(json.dumps(record(plan=plan).to_json()), encoding="utf-8")
    assert Record.read(path) == record(plan=plan)


def test_it_says_what_people_look_for() -> None:
    data = record().to_json()
    assert data["request"]["prompt"] == "a cat"
    assert data["seconds_per_step"] == 0.4
    assert data["plan"]["actions"]["cond"]["output"] == "CCCRCRCRCR"
    assert data["setting"]["weights"] == "ab12"
    assert {"sightline", "python", "torch", "diffusers", "av"} <= set(versions())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "other"}, "schema must be 'sightline-video', not 'other'"),
        ({"version": 9}, "version must be 1, not 9; it was written by another release"),
        ({"request": None}, "request must be an object, not None"),
        ({"request": {"prompt": "a"}}, "request lacks frames, guidance, height, shift, steps, width"),
        ({"request": {**REQUEST.to_json(), "steps": 0}}, "steps must be a whole number from 1"),
        ({"setting": {"steps": 10, "colour": 1}}, "setting has a wrong field.*colour"),
        ({"load": []}, "load must be an object"),
        ({"load": {"layout": None}}, "load has no option 'layout'; the options are model, "),
        ({"load": {"model": 3}}, "model of load must be a text, not 3"),
        ({"load": {"operators": "yes"}}, "operators of load must be true or false, not 'yes'"),
        ({"seconds": 3}, "seconds must be an object"),
        ({"seconds": {"text": "1"}}, "text of seconds must be a number, not '1'"),
        ({"parallel": {"cfg": "2"}}, "cfg of parallel must be a whole number, not '2'"),
        ({"parts": {"vae": 3}}, "vae of parts must be a text, not 3"),
        ({"file": 3}, "file must be a text, not 3"),
        ({"command": "ls"}, "command must be a list, not 'ls'"),
        ({"plan": 3}, "plan must be an object, not 3"),
        ({"plan": {"schema": "x"}}, "schema must be 'sightline-step-cache-plan'"),
    ],
)
def test_another_file_is_refused_with_the_field(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "cat.json"
    path.write_text(json.dumps(record().to_json() | change), encoding="utf-8")
    with pytest.raises(SightlineError, match=f"cat.json is no record of a video: {message}"):
        Record.read(path)


def test_differences_are_those_that_change_the_picture() -> None:
    made = record()
    assert made.differences(REQUEST, SETTING, made.load, PLAN) == []
    elsewhere = replace(SETTING, device="NVIDIA H200", versions={"torch": "2.12.0"})
    assert made.differences(REQUEST, elsewhere, {"model": "/other", "offload": "model"}, PLAN) == []
    assert made.differences(
        replace(REQUEST, steps=30, seed=8), SETTING, {"operators": False, "tile_vae": True}, PLAN
    ) == [
        "steps (10, here 30)",
        "seed (7, here 8)",
        "operators (True, here False)",
        "tile_vae (False, here True)",
    ]
    assert made.differences(REQUEST, replace(SETTING, weights="cd", dtype="bfloat16"), {}, None) == [
        "weights ('ab12', here 'cd')",
        "dtype ('float32', here 'bfloat16')",
        "plan (another, here None)",
    ]


def test_another_vae_is_a_difference_where_both_are_known() -> None:
    made = record()
    same = (REQUEST, SETTING, made.load, PLAN)
    assert made.differences(*same, {"text_encoder": "cd34", "vae": "ef57"}) == [
        "weights of vae ('ef56', here 'ef57')"
    ]
    assert made.differences(*same, made.parts) == made.differences(*same) == []
    assert record(parts={}).differences(*same, made.parts) == []


def test_a_plan_that_computes_everything_is_none_and_names_do_not_count() -> None:
    assert record(plan=None).differences(REQUEST, SETTING, {}, exact(Setting(steps=10))) == []
    assert record().differences(REQUEST, SETTING, {}, replace(PLAN, name="other")) == []


def test_the_digest_is_of_the_values() -> None:
    pictures = np.arange(48, dtype=np.uint8).reshape(2, 2, 4, 3)
    assert digest_of(pictures) == digest_of(np.ascontiguousarray(pictures[:, ::-1])[:, ::-1])
    assert digest_of(pictures) != digest_of(pictures[::-1])
