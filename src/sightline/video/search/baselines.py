"""Plans by rule that are in every race, so that the table says what searching is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sightline.video.builders import fewer_steps, fixed_interval, uncond_only
from sightline.video.plan import Plan
from sightline.video.search.goal import Goal
from sightline.video.setting import Setting
from sightline.video.sites import OUTPUT, Action, Site

FEWER, INTERVAL, UNCOND = "fewer steps", "fixed interval", "uncond only"


def baselines(setting: Setting, goal: Goal, branches: Sequence[str], blocks: int) -> list[tuple[str, Plan]]:
    """Family and plan each: fewer steps around the goal's speed, fixed intervals of outputs and of blocks, and
    reusing only the branch without the prompt."""
    found: list[tuple[str, Plan]] = []
    speeds = sorted({1.5, 2.0, 3.0} | ({goal.budget} if goal.budget else set()))
    for count in sorted({max(round(setting.steps / speed), 1) for speed in speeds}, reverse=True):
        if count < setting.steps:
            found.append((FEWER, fewer_steps(setting, count)))
    for interval in (2, 3):
        found.append((INTERVAL, _interval(setting, interval, branches)))
    found.append((INTERVAL, _interval(setting, 2, branches, skipped=Action.EXTRAPOLATE)))
    if blocks > 2:
        found.append((INTERVAL, _interval(setting, 2, branches, Site.parse(f"blocks[1:{blocks - 1}]"))))
    if "uncond" in branches:
        found += [(UNCOND, uncond_only(setting, interval)) for interval in (2, 5)]
    return found


def _interval(
    setting: Setting,
    interval: int,
    branches: Sequence[str],
    site: Site = OUTPUT,
    skipped: Action = Action.REUSE,
) -> Plan:
    plan = fixed_interval(setting, interval, branches=branches, skipped=skipped, site=site)
    how = "line" if skipped is Action.EXTRAPOLATE else "reuse"
    return replace(plan, name=f"{how} {site}, every {interval}")
