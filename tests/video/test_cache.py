"""The executor in a tiny Wan: exact where everything is computed, and elsewhere what a loop written by hand gives."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tiny_wan import BRANCHES, by_hand, denoise, latents, make_model, prompts, timestep

from sightline.errors import SightlineError
from sightline.video.attach import attached
from sightline.video.builders import exact, fixed_interval, joined, masked, uncond_only
from sightline.video.cache import StepCache
from sightline.video.plan import Plan
from sightline.video.setting import Setting
from sightline.video.sites import OUTPUT, Action, Site

STEPS = 8
SETTING = Setting(steps=STEPS)
BLOCKS = Site.parse("blocks[1:3]")
ATTENTION = Site.parse("attention[0:3]")


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model()


@pytest.fixture(scope="module")
def plain(model: Any) -> list[torch.Tensor]:
    return denoise(model, STEPS)


def run(model: Any, plan: Plan, **options: Any) -> list[torch.Tensor]:
    cache = StepCache(plan, **options)
    with attached(model, cache):
        return denoise(model, STEPS, cache.step)


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def alternating(site: Site, action: Action = Action.REUSE, **options: Any) -> Plan:
    return masked(SETTING, site, [0, 1, 2, 4, 7], skipped=action, **options)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("site", [None, OUTPUT, BLOCKS, ATTENTION], ids=str)
def test_a_plan_that_computes_everything_changes_no_bit(
    model: Any, plain: list[torch.Tensor], site: Site | None, share: bool
) -> None:
    plan = exact(SETTING) if site is None else masked(SETTING, site, range(STEPS))
    assert same(run(model, plan, share=share), plain)


@pytest.mark.parametrize("cond", [(1, 3), (0, 1), (0, 3), (2, 3), (0, 2)], ids=str)
@pytest.mark.parametrize("uncond", [(1, 3), (1, 2)], ids=str)
def test_a_reused_range_adds_the_change_of_the_last_computed_step_to_its_input(
    model: Any, plain: list[torch.Tensor], cond: tuple[int, int], uncond: tuple[int, int]
) -> None:
    bounds = {"cond": cond, "uncond": uncond}
    computed, changes = {0, 1, 2, 4, 7}, {}

    def clock(step: int, branch: str) -> Any:
        nonlocal now
        now = (step, branch)
        return nullcontext()

    def loop(hidden: torch.Tensor, *arguments: Any) -> torch.Tensor:
        step, branch = now
        start, stop = bounds[branch]
        for block in model.blocks[:start]:
            hidden = block(hidden, *arguments)
        if step in computed:
            before = hidden
            for block in model.blocks[start:stop]:
                hidden = block(hidden, *arguments)
            changes[branch] = hidden - before
        else:
            hidden = hidden + changes[branch]
        for block in model.blocks[stop:]:
            hidden = block(hidden, *arguments)
        return hidden

    def call(x: torch.Tensor, time: torch.Tensor, text: torch.Tensor, return_dict: bool) -> Any:
        return (by_hand(model, x, time, text, loop),)

    now = (0, "cond")
    expected = denoise(call, STEPS, clock)
    plans = [
        alternating(Site.parse(f"blocks[{start}:{stop}]"), branches=(branch,))
        for branch, (start, stop) in bounds.items()
    ]
    found = run(model, joined(plans))
    assert same(found, expected)
    assert not torch.equal(found[-1], plain[-1])


def outputs_by_hand(model: Any, standing_in: Any) -> list[torch.Tensor]:
    """The loop with each branch's output kept by step, and `standing_in(step, kept)` where it is not computed."""
    x, texts, found = latents(), prompts(), []
    kept: dict[str, dict[int, torch.Tensor]] = {branch: {} for branch in BRANCHES}
    for step in range(STEPS):
        velocity = {}
        for branch in BRANCHES:
            if step in {0, 1, 2, 4, 7}:
                with torch.no_grad():
                    kept[branch][step] = model(x, timestep(step, STEPS), texts[branch]).sample
                velocity[branch] = kept[branch][step]
            else:
                velocity[branch] = standing_in(step, kept[branch])
        x = x - (velocity["uncond"] + 3.0 * (velocity["cond"] - velocity["uncond"])) / STEPS
        found.append(x)
    return found


def test_a_reused_output_is_the_last_computed_one(model: Any) -> None:
    expected = outputs_by_hand(model, lambda step, kept: kept[max(kept)])
    assert same(run(model, alternating(OUTPUT)), expected)


def test_an_extrapolated_output_lies_on_the_line_through_the_last_two(model: Any) -> None:
    def line(step: int, kept: dict[int, torch.Tensor]) -> torch.Tensor:
        older, newer = sorted(kept)[-2:]
        return kept[newer] + (kept[newer] - kept[older]) * ((step - newer) / (newer - older))

    expected = outputs_by_hand(model, line)
    for one, other in zip(run(model, alternating(OUTPUT, Action.EXTRAPOLATE)), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_extrapolation_follows_the_times_and_the_order_of_the_plan(model: Any) -> None:
    times = tuple((step + 1.0) ** 2 for step in range(STEPS))

    def parabola(step: int, kept: dict[int, torch.Tensor]) -> torch.Tensor:
        a, b, c = sorted(kept)[-3:]
        t, ta, tb, tc = times[step], times[a], times[b], times[c]
        return (
            kept[a] * ((t - tb) * (t - tc) / ((ta - tb) * (ta - tc)))
            + kept[b] * ((t - ta) * (t - tc) / ((tb - ta) * (tb - tc)))
            + kept[c] * ((t - ta) * (t - tb) / ((tc - ta) * (tc - tb)))
        )

    actions = alternating(OUTPUT, Action.EXTRAPOLATE).actions
    found = run(model, Plan(SETTING, actions, order=2, times=times))
    for one, other in zip(found, outputs_by_hand(model, parabola), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_reused_attention_is_each_block_s_own_of_the_last_computed_step(model: Any) -> None:
    kept: dict[tuple[str, int], torch.Tensor] = {}
    now = (0, "cond")

    def clock(step: int, branch: str) -> Any:
        nonlocal now
        now = (step, branch)
        return nullcontext()

    def hook(number: int) -> Any:
        def after(module: Any, given: Any, output: torch.Tensor) -> torch.Tensor:
            if now[0] in {0, 1, 2, 4, 7}:
                kept[now[1], number] = output
            return kept[now[1], number]

        return after

    hooks = [block.attn1.register_forward_hook(hook(number)) for number, block in enumerate(model.blocks)]
    expected = denoise(model, STEPS, clock)
    for each in hooks:
        each.remove()
    assert same(run(model, alternating(ATTENTION)), expected)


def test_branches_have_actions_and_values_of_their_own(model: Any, plain: list[torch.Tensor]) -> None:
    calls = []
    handle = model.patch_embedding.register_forward_hook(lambda *given: calls.append(1))
    found = run(model, uncond_only(SETTING, 2, start=3))
    handle.remove()
    assert len(calls) == 2 * STEPS - 2
    assert same(found[:4], plain[:4])
    assert not torch.equal(found[4], plain[4])


def test_a_site_inside_another_takes_from_the_steps_in_which_it_really_ran(model: Any) -> None:
    outer = masked(SETTING, BLOCKS, [0, 2, 4, 6])
    inner = masked(SETTING, Site.parse("attention[1:2]"), [0, 1, 2, 6])
    together = run(model, joined([outer, inner]))
    # Step 1 and 5 do not reach the attention, so at step 4 it has that of step 2 and nothing newer.
    alone = run(model, joined([outer, masked(SETTING, Site.parse("attention[1:2]"), [0, 2, 6])]))
    assert same(together, alone)


def test_values_are_freed_when_no_later_step_asks(model: Any) -> None:
    cache = StepCache(masked(SETTING, OUTPUT, [0, 1, 3, 4, 5, 6, 7]), share=False)
    sizes = []
    size = latents().numel() * 4
    texts = prompts()
    with attached(model, cache), torch.no_grad():
        for step in range(4):
            for branch in BRANCHES:
                with cache.step(step, branch):
                    model(latents(), timestep(step, STEPS), texts[branch])
            sizes.append(cache.held_bytes())
    assert sizes == [0, 2 * size, 0, 0]


def interrupt(*given: Any) -> None:
    raise KeyboardInterrupt


def test_a_generation_that_breaks_off_leaves_nothing(model: Any) -> None:
    cache = StepCache(alternating(BLOCKS))
    texts = prompts()
    with pytest.raises(KeyboardInterrupt), attached(model, cache), torch.no_grad():
        for step in range(3):
            with cache.step(step, "cond"):
                model(latents(), timestep(step, STEPS), texts["cond"])
        assert cache.held_bytes() > 0
        model.blocks[2].norm3.register_forward_hook(interrupt)
        with cache.step(4, "cond"):
            model(latents(), timestep(4, STEPS), texts["cond"])
    model.blocks[2].norm3._forward_hooks.clear()
    assert cache.held_bytes() == 0
    assert not any(point.held or point.value or point.entering for point in cache.points.values())
    with attached(model, cache):
        again = denoise(model, STEPS, cache.step)
    assert same(again, run(model, alternating(BLOCKS)))


def test_a_call_outside_of_any_step_is_plain_and_shifts_nothing(model: Any) -> None:
    cache = StepCache(alternating(BLOCKS))
    arguments = (latents(5), timestep(3, STEPS), prompts()["cond"])
    with torch.no_grad():
        expected = model(*arguments).sample
    with attached(model, cache), torch.no_grad():
        assert torch.equal(model(*arguments).sample, expected)
        found = denoise(model, STEPS, cache.step)
        assert torch.equal(model(*arguments).sample, expected)
    assert same(found, run(model, alternating(BLOCKS)))


def test_a_reused_output_has_the_form_that_was_asked_for(model: Any) -> None:
    cache = StepCache(masked(SETTING, OUTPUT, [0]))
    arguments = (latents(), timestep(0, STEPS), prompts()["cond"])
    with attached(model, cache), torch.no_grad():
        with cache.step(0):
            computed = model(*arguments).sample
        with cache.step(1):
            assert torch.equal(model(*arguments).sample, computed)
        with cache.step(2):
            assert torch.equal(model(*arguments, return_dict=False)[0], computed)
        with cache.step(3):
            assert isinstance(model(*arguments, None, False), tuple)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([(0, "cond"), (0, "cond")], "step 0 of branch cond came after step 0; begin a new generation"),
        ([(2, "cond"), (1, "cond")], "step 1 of branch cond came after step 2"),
        ([(8, "cond")], "the plan has steps 0 to 7, not 8"),
        ([(-1, "cond")], "not -1"),
        ([(0, "both")], "'both' is no branch; the branches are cond and uncond"),
        ([(3, "cond")], r"step 3 of branch cond takes blocks\[1:3\] from step 2, which did not compute it"),
        # The model was not called in step 2.
        ([(0, "cond"), (1, "cond"), (2, "cond"), (3, "cond")], r"takes blocks\[1:3\] from step 2"),
    ],
)
def test_a_clock_that_goes_wrong_is_refused(steps: list[tuple[int, str]], message: str) -> None:
    cache = StepCache(alternating(BLOCKS))
    with cache.generation(), pytest.raises(SightlineError, match=message):
        for step, branch in steps:
            with cache.step(step, branch):
                pass


@pytest.mark.parametrize("steps", [(0, 1, 2, 3, 5), (0, 1, 2, 5)], ids=["not called", "left out"])
def test_a_step_that_did_not_compute_is_not_replaced_by_an_older_one(
    model: Any, steps: tuple[int, ...]
) -> None:
    row = tuple(Action(letter) for letter in "CCECECEC")
    cache = StepCache(Plan(SETTING, {"cond": {OUTPUT: row}}))
    with attached(model, cache), torch.no_grad():
        for step in steps:
            with cache.step(step):
                if step != 3:
                    model(latents(), timestep(step, STEPS), prompts()["cond"])
        # It takes from 3 and 5, and not from 1 and 5.
        with (
            pytest.raises(SightlineError, match="step 6 of branch cond takes output from step 3"),
            cache.step(6),
        ):
            pass


def test_a_refused_step_leaves_the_model_plain(model: Any) -> None:
    cache = StepCache(alternating(BLOCKS))
    arguments = (latents(), timestep(3, STEPS), prompts()["cond"])
    with torch.no_grad():
        expected = model(*arguments).sample
    with attached(model, cache), torch.no_grad():
        with pytest.raises(SightlineError), cache.step(3):
            pass
        assert torch.equal(model(*arguments).sample, expected)


def test_steps_belong_into_one_generation_and_not_into_one_another() -> None:
    cache = StepCache(exact(SETTING))
    with pytest.raises(SightlineError, match="outside of a generation"), cache.step(0):
        pass
    with cache.generation():
        with (
            pytest.raises(SightlineError, match="in a generation; make one cache for each"),
            cache.generation(),
        ):
            pass
        with cache.step(0), pytest.raises(SightlineError, match="step 1 began inside step 0"), cache.step(1):
            pass


def test_another_size_within_a_generation_is_refused(model: Any) -> None:
    cache = StepCache(fixed_interval(SETTING, 2, site=BLOCKS))
    text = prompts()["cond"]
    with attached(model, cache), torch.no_grad():
        with cache.step(0):
            model(latents(), timestep(0, STEPS), text)
        with pytest.raises(SightlineError, match="one generation has one size"), cache.step(1):
            model(latents()[:, :, :, :4], timestep(1, STEPS), text)


def test_a_range_whose_output_has_another_length_than_its_input_is_refused(model: Any) -> None:
    cache = StepCache(fixed_interval(SETTING, 2, site=BLOCKS))
    original = model.blocks[2].forward
    model.blocks[2].forward = lambda hidden, *rest: original(hidden, *rest)[:, :4]
    try:
        with (
            attached(model, cache),
            torch.no_grad(),
            pytest.raises(SightlineError, match="attach the cache first"),
            cache.step(0),
        ):
            model(latents(), timestep(0, STEPS), prompts()["cond"])
    finally:
        del model.blocks[2].forward
