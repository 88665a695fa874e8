"""Errors from products: against the vectors themselves."""

from __future__ import annotations

import numpy as np
import pretended_search
import pytest
import torch
from pretended_search import BRANCHES, GUIDANCE, PretendedRunner

from sightline.video.search.costs import Costs
from sightline.video.search.drafts import Draft, make_plan, predict, predicted_error
from sightline.video.search.errors import Errors
from sightline.video.search.measure import Subject
from sightline.video.search.products import Products, Sampler
from sightline.video.sites import OUTPUT, Action, Site

SUBJECT = Subject("a one", 0)


@pytest.fixture(scope="module")
def vectors() -> dict[tuple[str, int], np.ndarray]:
    found = {}
    runner = PretendedRunner()
    runner.loop(
        None, SUBJECT, 12, lambda step, given: found.update({(b, step): given[b].numpy() for b in BRANCHES})
    )
    return found


@pytest.fixture(scope="module")
def errors() -> Errors:
    return Errors((PretendedRunner().probe(SUBJECT, 12),), GUIDANCE, np.ones(12))


def test_the_error_of_a_guided_prediction_is_that_of_the_vectors(vectors: dict, errors: Errors) -> None:  # type: ignore[type-arg]
    weights = {"cond": {("cond", 5): 1.2, ("uncond", 4): -0.3}, "uncond": {("uncond", 5): 0.9}}
    cond = vectors["cond", 7] - 1.2 * vectors["cond", 5] + 0.3 * vectors["uncond", 4]
    uncond = vectors["uncond", 7] - 0.9 * vectors["uncond", 5]
    guided = GUIDANCE * cond + (1 - GUIDANCE) * uncond
    expected = np.sqrt(np.mean(guided**2) / errors.records[0].final[0])
    assert errors.rms(7, weights)[0] == pytest.approx(expected, rel=1e-6)
    step = abs(errors.records[0].sigmas[7] - errors.records[0].sigmas[8])
    assert errors.contribution(7, weights) == pytest.approx(expected * step, rel=1e-6)


def test_a_fit_is_that_of_least_squares_and_noise_pulls_it_back(vectors: dict, errors: Errors) -> None:  # type: ignore[type-arg]
    sources = [("cond", 5), ("cond", 3), ("uncond", 5)]
    found = errors.fit(("cond", 7), sources, {("cond", 5): 1.0}, 0.0)
    matrix = np.stack([vectors[each] for each in sources], 1)
    expected = np.linalg.lstsq(matrix, vectors["cond", 7], rcond=None)[0]
    assert list(found.values()) == pytest.approx(list(expected), rel=1e-4)
    stiff = errors.fit(("cond", 7), sources, {("cond", 5): 1.0}, 100.0)
    assert list(stiff.values()) == pytest.approx([1, 0, 0], abs=1e-3)


def test_both_branches_fitted_from_the_same_values_are_the_guided_fit(vectors: dict, errors: Errors) -> None:  # type: ignore[type-arg]
    """Projection is linear, so no other weights of these values bring the guided velocity nearer."""
    found = errors.rms(7, predict(errors, "fitted", 2, 1e-6, 7, (5, 3), (5, 3)))[0]
    guided = GUIDANCE * vectors["cond", 7] + (1 - GUIDANCE) * vectors["uncond", 7]
    matrix = np.stack([vectors[branch, step] for branch in BRANCHES for step in (5, 3)], 1)
    best = guided - matrix @ np.linalg.lstsq(matrix, guided, rcond=None)[0]
    assert found == pytest.approx(np.sqrt(np.mean(best**2) / errors.records[0].final[0]), rel=1e-3)


def test_fits_are_never_worse_than_the_others_by_prediction(errors: Errors) -> None:
    for step, last in ((4, (3, 1)), (7, (5, 4)), (9, (6, 3))):
        by_way = [
            errors.contribution(step, predict(errors, way, 2, 1e-6, step, last, last))
            for way in ("fitted", "extrapolated", "reused")
        ]
        assert by_way == sorted(by_way)


def test_values_outside_of_the_window_are_unknown() -> None:
    products = Products(5, 1, 2)
    for step in range(5):
        products.add(step, [np.full(3, float(step + 1), np.float32)])
        assert len(products._kept) <= 3
    table = products.table[0, :, 0]
    assert np.isnan(table[4, 1])
    assert table[4, 2] == table[2, 4] == 15.0


def test_old_values_are_left_out_of_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretended_search, "WINDOW", 21)
    runner = PretendedRunner(steps=40)
    errors = Errors((runner.probe(SUBJECT, 40),), GUIDANCE, np.ones(40))
    found = predict(errors, "fitted", 3, 0.01, 39, (39, 30, 10), (30, 20, 2))
    assert {step for _, step in found["uncond"]} == {39, 30, 20}


def test_a_sample_is_the_same_elements_of_every_tensor() -> None:
    sampler = Sampler(10)
    values = torch.arange(1000.0)
    assert len(sampler(values)) == 10
    assert np.array_equal(sampler(values + 1), sampler(values) + 1)
    assert np.array_equal(sampler(torch.arange(4.0)), np.arange(4.0))


@pytest.mark.parametrize(
    "draft",
    [
        Draft((0, 2, 3, 6, 9), (0, 3, 6), "fitted", 2),
        Draft((0, 2, 3, 6, 9), (0, 2, 3, 6, 9), "extrapolated", 3),
        Draft((0, 2, 3, 6, 9), (0, 3, 6, 9), "extrapolated", 4),
        Draft((0, 2, 3, 6, 9), (0, 2, 3, 6, 9), "reused", 1),
        Draft((0, 2, 3, 6, 9), (0, 2, 3, 6, 9), "reused", 1, site="blocks[1:3]"),
    ],
)
def test_a_draft_becomes_the_plan_it_says(draft: Draft, errors: Errors) -> None:
    plan = make_plan(errors, draft, PretendedRunner().setting())
    for branch, steps in (("cond", draft.cond), ("uncond", draft.uncond)):
        row = plan.actions[branch][Site.parse(draft.site)]
        assert tuple(step for step, action in enumerate(row) if action is Action.COMPUTE) == steps
        letters = {"fitted": "CF", "extrapolated": "CER", "reused": "CR"}[draft.way]
        assert {action.value for action in row} <= set(letters)
    if draft.way == "fitted":
        assert plan.fits["uncond"][OUTPUT][2][0][:2] == ("cond", 2)
        assert predicted_error(errors, draft) > 0


def test_predicted_errors_order_drafts_as_real_ones_do(errors: Errors) -> None:
    runner, random = PretendedRunner(), np.random.default_rng(0)
    exact = runner.run(None, SUBJECT).latents
    predicted, real = [], []
    for way in ("fitted", "extrapolated", "reused") * 6:
        steps = (
            0,
            *sorted(random.choice(np.arange(1, 12), int(random.integers(4, 9)), replace=False).tolist()),
        )
        draft = Draft(steps, steps, way, 2)
        predicted.append(predicted_error(errors, draft))
        made = runner.run(make_plan(errors, draft, runner.setting()), SUBJECT).latents
        real.append(float((made - exact).norm() / exact.norm()))
    ranks = np.corrcoef(np.argsort(np.argsort(predicted)), np.argsort(np.argsort(real)))
    assert ranks[0, 1] > 0.8


def test_seconds_are_those_of_the_calls() -> None:
    runner = PretendedRunner()
    exact = runner.run(None, SUBJECT).denoise
    costs = Costs.of(runner.probe(SUBJECT, 12), exact)
    assert costs.exact() == pytest.approx(exact)
    draft = Draft((0, 2, 4, 6, 8, 10), (0, 4, 8))
    errors = Errors((runner.probe(SUBJECT, 12),), GUIDANCE, np.ones(12))
    assert costs.of_draft(draft) == pytest.approx(
        runner.run(make_plan(errors, draft, runner.setting()), SUBJECT).denoise
    )
    assert costs.most(costs.exact() / 2) == 5
    # A range that is half of a call: at most half can be saved.
    assert costs.most(costs.exact() / 1.9, Site.parse("blocks[0:4]")) == 0
    assert costs.most(costs.exact() / 1.3, Site.parse("blocks[0:4]")) > 0


def test_errors_of_steps_add_up_as_vectors(vectors: dict, errors: Errors) -> None:  # type: ignore[type-arg]
    weights = {
        4: {"cond": {("cond", 3): 1.0}},
        9: {"cond": {("cond", 8): 1.0}, "uncond": {("uncond", 8): 1.0}},
    }
    total = 0.0
    for step, branches in weights.items():
        for branch in branches:
            moved = vectors[branch, step] - vectors[branch, step - 1]
            total = total + errors.weight(step) * errors.shares[branch] * moved
    expected = np.sqrt(np.mean(np.square(total)) / errors.records[0].final[0])
    assert errors.together(weights) == pytest.approx(expected, rel=1e-6)
    assert errors.together({}) == 0
