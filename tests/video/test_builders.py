"""Plans by rule."""

from __future__ import annotations

import pytest

from sightline.errors import UsageError
from sightline.video.builders import exact, fewer_steps, fixed_interval, joined, masked, uncond_only
from sightline.video.plan import Plan
from sightline.video.setting import Setting
from sightline.video.sites import OUTPUT, Action, Site

SETTING = Setting(steps=8, frames=9)
BLOCKS = Site.parse("blocks[1:3]")


def text(plan: Plan, branch: str = "cond", site: Site = OUTPUT) -> str:
    return "".join(action.value for action in plan.actions[branch][site])


def test_a_fixed_interval() -> None:
    plan = fixed_interval(SETTING, 3, start=1)
    assert text(plan) == text(plan, "uncond") == "CCRRCRRC"
    assert text(fixed_interval(SETTING, 3, start=1, end=5)) == "CCRRCRCC"
    assert text(fixed_interval(SETTING, 3, start=1, site=BLOCKS), site=BLOCKS) == "CCRRCRRC"
    assert plan.name == "every 3 from 1"


def test_extrapolation_reuses_while_one_step_is_all_there_is() -> None:
    assert text(fixed_interval(SETTING, 3, skipped=Action.EXTRAPOLATE)) == "CRRCEECE"


def test_only_uncond_is_skipped() -> None:
    plan = uncond_only(SETTING, 2, start=4)
    assert list(plan.actions) == ["uncond"]
    assert text(plan, "uncond") == "CCCCCRCR"
    assert plan.name == "uncond every 2 from 4"


def test_fewer_steps_are_another_setting_in_which_all_is_computed() -> None:
    plan = fewer_steps(SETTING, 5)
    assert (plan.setting, dict(plan.actions)) == (Setting(steps=5, frames=9), {})
    assert not exact(SETTING).actions
    with pytest.raises(UsageError, match="steps must be between 1 and the 8 of the exact run, not 9"):
        fewer_steps(SETTING, 9)


def test_a_mask() -> None:
    assert text(masked(SETTING, OUTPUT, [0, 1, 5])) == "CCRRRCRR"
    with pytest.raises(UsageError, match="step 8 does not exist; the steps are 0 to 7"):
        masked(SETTING, OUTPUT, [0, 8])
    with pytest.raises(UsageError, match="step 0 reuses output"):
        masked(SETTING, OUTPUT, [1])


def test_plans_are_joined_and_do_not_keep_the_same_twice() -> None:
    plan = joined([uncond_only(SETTING, 2), fixed_interval(SETTING, 2, site=BLOCKS)], name="both")
    assert set(plan.actions["uncond"]) == {OUTPUT, BLOCKS}
    assert (set(plan.actions["cond"]), plan.name) == ({BLOCKS}, "both")
    with pytest.raises(UsageError, match="two of the plans keep output of branch uncond"):
        joined([uncond_only(SETTING, 2), fixed_interval(SETTING, 3)])
    with pytest.raises(UsageError, match="differ in setting, order or times"):
        joined([exact(SETTING), exact(Setting(steps=4))])
    with pytest.raises(UsageError, match="no plans to join"):
        joined([])


def test_an_interval_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="interval must be 1 or more and start 0 or more, not 0 and 0"):
        fixed_interval(SETTING, 0)
