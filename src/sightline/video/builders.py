"""Plans by rule: the baselines that a searched plan has to beat, and the parts it is put together from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from sightline.errors import UsageError
from sightline.video.fits import SiteFits
from sightline.video.plan import Plan
from sightline.video.setting import Setting
from sightline.video.sites import BRANCHES, OUTPUT, Action, Site


def exact(setting: Setting) -> Plan:
    """Every step computes everything."""
    return Plan(setting, name="exact")


def fewer_steps(setting: Setting, steps: int) -> Plan:
    """The plainest way to save: as many steps fewer, all of them computed."""
    if not 1 <= steps <= setting.steps:
        raise UsageError(f"steps must be between 1 and the {setting.steps} of the exact run, not {steps}")
    return Plan(replace(setting, steps=steps), name=f"{steps} steps")


def masked(
    setting: Setting,
    site: Site,
    computed: Iterable[int],
    *,
    branches: Sequence[str] = BRANCHES,
    skipped: Action = Action.REUSE,
    order: int = 1,
    name: str = "",
) -> Plan:
    """The given steps compute a site, all others take it from those.

    Args:
        skipped: what the others do. Where `extrapolate` has only one computed step before it, it reuses that.

    Raises:
        UsageError: a step that does not exist, or step 0 is not among them.
    """
    chosen = set(computed)
    beyond = sorted(step for step in chosen if not 0 <= step < setting.steps)
    if beyond:
        raise UsageError(f"step {beyond[0]} does not exist; the steps are 0 to {setting.steps - 1}")
    row = tuple(_action(step, chosen, skipped) for step in range(setting.steps))
    return Plan(setting, {branch: {site: row} for branch in branches}, order=order, name=name)


def fixed_interval(
    setting: Setting,
    interval: int,
    *,
    start: int = 0,
    end: int | None = None,
    site: Site = OUTPUT,
    branches: Sequence[str] = BRANCHES,
    skipped: Action = Action.REUSE,
    order: int = 1,
) -> Plan:
    """From step `start` on every `interval`-th step computes, and so does every step after `end`.

    A step is taken from an earlier one when `start < step <= end` and `(step - start) % interval != 0`, the rule of
    `CacheConfig`.

    Raises:
        UsageError: an interval below 1, or a start below 0.
    """
    if interval < 1 or start < 0:
        raise UsageError(f"interval must be 1 or more and start 0 or more, not {interval} and {start}")
    last = setting.steps if end is None else end
    computed = [step for step in range(setting.steps) if not skips(step, start, interval, last)]
    name = f"every {interval} from {start}" + ("" if end is None else f" to {end}")
    return masked(setting, site, computed, branches=branches, skipped=skipped, order=order, name=name)


def skips(step: int, start: int, interval: int, end: int) -> bool:
    """The rule of a fixed interval: whether this step takes what an earlier one computed."""
    return start < step <= end and (step - start) % interval != 0


def uncond_only(
    setting: Setting, interval: int, *, start: int = 0, end: int | None = None, skipped: Action = Action.REUSE
) -> Plan:
    """Only the model's output without the prompt is taken from earlier steps; it changes least, above all late."""
    plan = fixed_interval(setting, interval, start=start, end=end, branches=("uncond",), skipped=skipped)
    return replace(plan, name=f"uncond {plan.name}")


def joined(plans: Sequence[Plan], *, name: str = "") -> Plan:
    """One plan that does what several do, at other sites or in other branches; the first gives order and times.

    Raises:
        UsageError: no plan, other settings, orders or times, or two that keep the same thing.
    """
    if not plans:
        raise UsageError("no plans to join; give at least one")
    first = plans[0]
    actions: dict[str, dict[Site, tuple[Action, ...]]] = {}
    fits: dict[str, dict[Site, SiteFits]] = {}
    for plan in plans:
        if (plan.setting, plan.order, plan.times) != (first.setting, first.order, first.times):
            raise UsageError(f"plans {first.name!r} and {plan.name!r} differ in setting, order or times")
        for branch, sites in plan.actions.items():
            held = actions.setdefault(branch, {})
            for site, row in sites.items():
                if site in held:
                    raise UsageError(f"two of the plans keep {site} of branch {branch}; join others")
                held[site] = row
        for branch, fitted in plan.fits.items():
            fits.setdefault(branch, {}).update(fitted)
    return Plan(first.setting, actions, order=first.order, times=first.times, name=name, fits=fits)


def _action(step: int, computed: set[int], skipped: Action) -> Action:
    if step in computed:
        return Action.COMPUTE
    before = sum(1 for other in computed if other < step)
    return Action.REUSE if skipped is Action.EXTRAPOLATE and before == 1 else skipped
