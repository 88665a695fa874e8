"""Plans: what they refuse, their file, and the generation that they are for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sightline.errors import SightlineError, UsageError
from sightline.video.plan import Evidence, Plan
from sightline.video.setting import Setting
from sightline.video.sites import OUTPUT, Action, Site

SETTING = Setting(
    steps=4,
    model="tiny-wan",
    weights="ab12",
    scheduler="UniPCMultistepScheduler",
    shift=3.0,
    width=64,
    height=48,
    frames=9,
    guidance=5.0,
    dtype="float32",
    device="cpu",
    versions={"torch": "2.13.0+cpu", "diffusers": "0.42.1"},
)
BLOCKS, ATTENTION = Site.parse("blocks[1:3]"), Site.parse("attention[0:4]")


def row(text: str) -> tuple[Action, ...]:
    return tuple(Action(letter) for letter in text)


PLAN = Plan(
    SETTING,
    {"cond": {BLOCKS: row("CRCE")}, "uncond": {OUTPUT: row("CRRC"), ATTENTION: row("CCCR")}},
    order=2,
    times=(1.0, 0.9, 0.6, 0.2),
    name="found",
    evidence=Evidence(("a circle", "ein Kreis – 圆"), (1, 2), 3.5, 7.0, {"psnr_worst": 31.5}),
)


def test_a_plan_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == PLAN


def test_the_file_can_be_read_by_eye(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "plan.json")
    data = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert data["actions"] == {
        "cond": {"blocks[1:3]": "CRCE"},
        "uncond": {"output": "CRRC", "attention[0:4]": "CCCR"},
    }
    assert (data["schema"], data["version"]) == ("sightline-step-cache-plan", 1)
    assert data["setting"]["frames"] == 9
    assert data["evidence"]["seconds"] == 3.5


def changed(**changes: Any) -> dict[str, Any]:
    """The plan's JSON with other values; a double underscore leads into a field."""
    data = PLAN.to_json()
    for path, value in changes.items():
        *outer, name = path.split("__")
        target = data
        for key in outer:
            target = target[key]
        target[name] = value
    return data


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": "x"}, "schema must be 'sightline-step-cache-plan', not 'x'"),
        ({"version": 2}, "version must be 1, not 2; it was written by another release"),
        ({"order": 0}, "order must be a whole number from 1 to 3, not 0"),
        ({"colour": 1}, "the plan has an unknown field 'colour'"),
        ({"setting": []}, "setting must be an object, not \\[\\]"),
        ({"setting": {}}, "setting has no steps"),
        ({"setting__steps": 0}, "steps must be a whole number above 0, not 0"),
        ({"setting__steps": True}, "steps must be a whole number above 0, not True"),
        (
            {"setting__steps": 5},
            r"branch cond: blocks\[1:3\] has 4 actions for 5 steps|times has 4 entries for 5",
        ),
        ({"setting__fps": 5}, "setting has an unknown field 'fps'"),
        ({"setting__shift": "3"}, "shift must be a number of 0 or more, not '3'"),
        ({"setting__guidance": float("nan")}, "guidance must be a number"),
        ({"setting__model": ""}, "model must be a text, not ''"),
        ({"setting__versions": {"torch": 2}}, "versions must be an object of texts by library"),
        ({"actions": None}, "actions must be an object of branches"),
        ({"actions": {"cond": "CCCC"}}, "actions must be an object of branches"),
        ({"actions": {"both": {}}}, "'both' is no branch; the branches are cond and uncond"),
        ({"actions": {"cond": {"block 3": "CCCC"}}}, "'block 3' is no site; write output, blocks"),
        ({"actions": {"cond": {"blocks[3:3]": "CCCC"}}}, r"site blocks\[3:3\] has no block in it"),
        (
            {"actions": {"cond": {"output": "CXCC"}}},
            "step 1 of cond output is 'X', and not one of C .compute., R",
        ),
        ({"actions": {"cond": {"output": 4}}}, "actions of cond output must be a text"),
        (
            {"actions": {"cond": {"output": "RCCC"}}},
            "branch cond: step 0 reuses output, but only 0 of the 1 steps",
        ),
        ({"actions": {"cond": {"output": "CECC"}}}, "step 1 extrapolates output, but only 1 of the 2 steps"),
        (
            {"actions": {"cond": {"blocks[0:2]": "CCCC", "blocks[1:3]": "CCCC"}}},
            r"blocks\[0:2\] and blocks\[1:3\] overlap; keep each block once",
        ),
        ({"times": [1, 2, 3]}, "times has 3 entries for 4 steps; give one a step"),
        ({"times": [1, 2, 2, 3]}, "times must rise or fall at every step"),
        ({"times": [1, "2", 3, 4]}, "times must be finite numbers"),
        ({"times": [1, 2, 3, float("inf")]}, "times must be finite numbers"),
        ({"times": 3}, "times must be a list, not 3"),
        ({"evidence__seconds": float("inf")}, "seconds of the evidence must be a finite number, not inf"),
        ({"evidence__fidelity": {"psnr": "x"}}, "psnr of the evidence must be a finite number"),
        ({"evidence__fidelity": 3}, "fidelity of the evidence must be an object"),
        ({"evidence__prompts": "a circle"}, "evidence.prompts must be a list"),
        ({"evidence__seeds": ["1"]}, "seeds of the evidence must be whole numbers"),
        ({"name": 5}, "name must be a text, not 5"),
    ],
)
def test_a_file_that_is_no_plan_is_refused_with_the_field(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(changed(**changes)))
    with pytest.raises(SightlineError, match=f"plan.json is no plan to use: .*(?:{message})") as caught:
        Plan.load(path)
    assert "\n" not in str(caught.value)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SightlineError, match="cannot read .*none.json"):
        Plan.load(tmp_path / "none.json")


def test_attention_within_a_reused_range_did_not_run() -> None:
    inner = Site.parse("attention[1:2]")
    Plan(SETTING, {"cond": {BLOCKS: row("CCCC"), inner: row("CRRC")}})
    # In step 1 the range is not computed, nor is its attention: nothing wrong so far.
    Plan(SETTING, {"cond": {BLOCKS: row("CRCC"), inner: row("CCRC")}})
    with pytest.raises(UsageError, match=r"step 2 extrapolates attention\[1:2\], but only 1 of the 2"):
        Plan(SETTING, {"cond": {BLOCKS: row("CRCC"), inner: row("CCEC")}})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weights", "cd34"),
        ("model", "other"),
        ("scheduler", "Euler"),
        ("shift", 5.0),
        ("width", 128),
        ("height", 64),
        ("frames", 13),
        ("guidance", 6.0),
        ("dtype", "bfloat16"),
        ("device", "NVIDIA H200"),
    ],
)
def test_another_generation_is_refused_with_the_field_that_differs(field: str, value: Any) -> None:
    other = replace(SETTING, **{field: value})
    told = f"{field} ({getattr(SETTING, field)}, here {value})"
    with pytest.raises(SightlineError) as caught:
        SETTING.require(other, whose="plan.json")
    assert f"plan.json is for another generation: {told}; " in str(caught.value)
    assert SETTING.require(other, anyway=True) == [told]
    # What one of the two does not know is no difference.
    assert SETTING.require(replace(other, **{field: None})) == []
    assert replace(SETTING, **{field: None}).require(other) == []


def test_another_number_of_steps_cannot_be_used_anyway() -> None:
    with pytest.raises(SightlineError, match="steps .4, here 5.; it says what each of 4 steps does"):
        SETTING.require(replace(SETTING, steps=5), anyway=True)


def test_a_library_s_second_number_counts_and_the_third_does_not() -> None:
    assert SETTING.require(replace(SETTING, versions={"torch": "2.13.1", "other": "1.0"})) == []
    with pytest.raises(SightlineError, match=r"version of torch \(2.13.0\+cpu, here 2.14.0\)"):
        SETTING.require(replace(SETTING, versions={"torch": "2.14.0"}))


def test_all_differences_are_told_at_once() -> None:
    assert SETTING.differences(replace(SETTING, frames=13, width=96)) == [
        "width (64, here 96)",
        "frames (9, here 13)",
    ]
