"""Fitted values: against a loop by hand, how long they are held, and what is refused."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_wan import BRANCHES, denoise, make_model

from sightline.errors import SightlineError, UsageError
from sightline.video.attach import attached
from sightline.video.builders import joined
from sightline.video.cache import StepCache
from sightline.video.fits import Term
from sightline.video.plan import Plan
from sightline.video.setting import Setting
from sightline.video.sites import OUTPUT, Action, Site

STEPS = 6


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model(2)


def plan(rows: dict[str, str], fits: dict[str, dict[int, list[Term]]], site: Site = OUTPUT) -> Plan:
    actions = {branch: {site: tuple(map(Action, row))} for branch, row in rows.items()}
    made = {
        branch: {site: {step: tuple(terms) for step, terms in steps.items()}}
        for branch, steps in fits.items()
    }
    return Plan(Setting(steps=len(next(iter(rows.values())))), actions, fits=made)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Output plans of both branches whose fitted steps take any values that were computed before."""
    rows = {
        branch: "C" + "".join(draw(st.lists(st.sampled_from("CF"), min_size=5, max_size=5)))
        for branch in BRANCHES
    }
    fits: dict[str, dict[int, list[Term]]] = {branch: {} for branch in BRANCHES}
    for number, branch in enumerate(BRANCHES):
        for step in range(STEPS):
            if rows[branch][step] == "F":
                before = [
                    (other, earlier)
                    for rank, other in enumerate(BRANCHES)
                    for earlier in range(STEPS)
                    if rows[other][earlier] == "C" and (earlier, rank) < (step, number)
                ]
                chosen = draw(st.lists(st.sampled_from(before), min_size=1, max_size=4, unique=True))
                fits[branch][step] = [Term(*one, draw(st.floats(-1, 1, width=16))) for one in chosen]
    return plan(rows, fits)


class ByHand:
    """Keeps everything and adds up what the plan names."""

    def __init__(self, model: Any, plan: Plan) -> None:
        self.model, self.plan = model, plan
        self.kept: dict[tuple[str, int], torch.Tensor] = {}

    def clock(self, step: int, branch: str) -> Any:
        self.now = (step, branch)
        return nullcontext()

    def __call__(self, *given: Any, **named: Any) -> Any:
        step, branch = self.now
        terms = self.plan.fits[branch][OUTPUT].get(step)
        if terms is None:
            self.kept[branch, step] = self.model(*given, **named)[0]
            return (self.kept[branch, step],)
        return (sum(weight * self.kept[source, at] for source, at, weight in terms),)


@given(plan=plans())
@settings(deadline=None, max_examples=25)
def test_a_fitted_step_is_the_sum_that_the_plan_names(model: Any, plan: Plan) -> None:
    hand = ByHand(model, plan)
    expected = denoise(hand, STEPS, hand.clock)
    with attached(model, StepCache(plan)) as cache:
        found = denoise(model, STEPS, cache.step)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@given(plan=plans())
@settings(deadline=None, max_examples=15)
def test_it_survives_its_file(plan: Plan) -> None:
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_plan_without_fits_is_written_as_before(tmp_path: Path) -> None:
    assert "fits" not in Plan(Setting(steps=2)).to_json()


def test_values_are_held_until_the_other_branch_had_them(model: Any) -> None:
    # Step 3 of uncond takes cond's step 0, so that goes with cond's next call, in step 4.
    made = plan(
        {"cond": "CCCCCC", "uncond": "CCCFCC"}, {"uncond": {3: [Term("cond", 0, 0.5), Term("cond", 3, 0.5)]}}
    )
    assert [set(each.keep) for each in made.directives("cond")[OUTPUT]] == [
        {0},
        {0},
        {0},
        {0, 3},
        set(),
        set(),
    ]
    assert not any(each.keep for each in made.directives("uncond")[OUTPUT])
    # What uncond computed is only asked for by cond's later steps.
    made = plan(
        {"cond": "CFFC", "uncond": "CCCC"}, {"cond": {1: [Term("cond", 0, 1.0)], 2: [Term("uncond", 0, 1.0)]}}
    )
    assert [set(each.keep) for each in made.directives("uncond")[OUTPUT]] == [{0}, {0}, set(), set()]


def test_a_branch_without_actions_can_be_taken_from(model: Any) -> None:
    made = plan({"uncond": "CFCFCC"}, {"uncond": {step: [Term("cond", step, 1.0)] for step in (1, 3)}})
    seen: dict[tuple[int, str], torch.Tensor] = {}
    with attached(model, StepCache(made)) as cache:
        for step in range(STEPS):
            x = torch.randn(1, 4, 3, 8, 8)
            for branch in BRANCHES:
                with cache.step(step, branch), torch.no_grad():
                    seen[step, branch] = model(
                        x, torch.tensor([5.0]), torch.ones(1, 5, 16), return_dict=False
                    )[0]
    assert torch.equal(seen[1, "uncond"], seen[1, "cond"])


def test_half_precision_sums_are_rounded_once() -> None:
    from sightline.video.points import Point

    point = Point(OUTPUT)
    values = [torch.full((1,), value, dtype=torch.bfloat16) for value in (1.0, 1.0 / 256, 1.0 / 256)]
    point.fitted, point.held = True, tuple((value,) for value in values)
    point.weights = tuple(torch.tensor(1.0, dtype=torch.float64) for _ in values)
    (found,) = point.predicted()
    assert found.dtype is torch.bfloat16
    assert float(found) == 1.0 + 2 / 256


def test_the_other_branch_must_run_in_the_same_process(model: Any) -> None:
    made = plan({"cond": "CC", "uncond": "CF"}, {"uncond": {1: [Term("cond", 1, 1.0)]}})
    with attached(model, StepCache(made)) as cache:
        with cache.step(0, "uncond"):
            pass
        with pytest.raises(
            SightlineError, match="takes output from step 1 of branch cond.* in one process, cond first"
        ):
            cache.enter(1, "uncond")


def test_joined_plans_keep_their_fits() -> None:
    one = plan({"cond": "CF"}, {"cond": {1: [Term("cond", 0, 1.0)]}})
    other = plan({"uncond": "CF"}, {"uncond": {1: [Term("uncond", 0, 2.0)]}})
    both = joined([one, other])
    assert both.fits["cond"] == one.fits["cond"]
    assert both.fits["uncond"] == other.fits["uncond"]


@pytest.mark.parametrize(
    ("rows", "fits", "message"),
    [
        ({"cond": "CF"}, {}, "branch cond: step 1 of output has no terms"),
        (
            {"cond": "CC"},
            {"cond": {1: [Term("cond", 0, 1.0)]}},
            "step 1 of output has terms but another action",
        ),
        (
            {"cond": "CF"},
            {"uncond": {1: [Term("cond", 0, 1.0)]}, "cond": {1: [Term("cond", 0, 1.0)]}},
            "no actions",
        ),
        ({"cond": "CF"}, {"cond": {1: []}}, "a sum of nothing"),
        (
            {"cond": "CFF"},
            {"cond": {1: [Term("cond", 0, 1.0)], 2: [Term("cond", 1, 1.0)]}},
            "takes step 1 of cond, which",
        ),
        (
            {"cond": "CF"},
            {"cond": {1: [Term("uncond", 1, 1.0)]}},
            "takes step 1 of uncond, which does not compute it",
        ),
        ({"cond": "CF"}, {"cond": {1: [Term("cond", -1, 1.0)]}}, "takes step -1"),
        ({"cond": "CF"}, {"cond": {1: [Term("cond", 0, float("nan"))]}}, "give a finite number"),
        ({"cond": "CF"}, {"cond": {1: [Term("both", 0, 1.0)]}}, "branch 'both'"),
    ],
)
def test_what_cannot_be_carried_out_is_refused(rows: Any, fits: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan(rows, fits)


def test_another_range_of_the_other_branch_cannot_be_taken_from() -> None:
    actions = {
        "cond": {Site.parse("attention[0:2]"): (Action.COMPUTE,) * 2},
        "uncond": {Site.parse("attention[1:2]"): (Action.COMPUTE, Action.FIT)},
    }
    fits = {"uncond": {Site.parse("attention[1:2]"): {1: (Term("cond", 1, 1.0),)}}}
    with pytest.raises(UsageError, match=r"takes attention\[1:2\] of cond, which keeps attention\[0:2\]"):
        Plan(Setting(steps=2), actions, fits=fits)


@pytest.mark.parametrize(
    ("fits", "message"),
    [
        ([], "an object of branches"),
        ({"both": {}}, "'both' is no branch"),
        ({"cond": {"output": []}}, "must be an object of steps"),
        ({"cond": {"output": {"one": []}}}, "a step 'one'"),
        ({"cond": {"output": {"1": [["cond", 0]]}}}, r"must be a list of \[branch, step, weight\]"),
    ],
)
def test_a_file_of_another_form_is_refused(fits: Any, message: str) -> None:
    data = json.loads(json.dumps(plan({"cond": "CF"}, {"cond": {1: [Term("cond", 0, 1.0)]}}).to_json()))
    with pytest.raises(UsageError, match=message):
        Plan.from_json(data | {"fits": fits})


def test_fits_of_a_branch_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match="'both' is no branch; the branches are cond and uncond"):
        Plan(Setting(steps=2), {"cond": {OUTPUT: (Action.COMPUTE,) * 2}}, fits={"both": {OUTPUT: {}}})
