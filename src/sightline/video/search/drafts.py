"""Drafts: which steps compute, how the others are made up, what error that is predicted to make, and as which plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sightline.errors import UsageError
from sightline.video.builders import masked
from sightline.video.fits import Term
from sightline.video.plan import Plan
from sightline.video.search.errors import Errors, Vector, Weights
from sightline.video.setting import Setting
from sightline.video.sites import BRANCHES, OUTPUT, Action, Site

WAYS = ("fitted", "extrapolated", "reused")
Predictions = dict[str, Weights]


@dataclass(frozen=True)
class Draft:
    """A schedule of the model's output, or of another site that both branches reuse alike.

    Attributes:
        cond, uncond: the steps that each branch computes, rising from 0; those of `uncond` are among those of `cond`.
            Without guidance `uncond` is empty.
        way: how the others come about: `fitted`, `extrapolated` (or reused, whichever is nearer), or `reused`.
        memory: computed steps that a fit or extrapolation looks back on.
        noise: of a fit, see `Errors.fit`.
        site: what is kept; fits and extrapolations are of the output.
        steps: of the solver; 0 is as many as were asked for.
        family, name: of tables and plots.
    """

    cond: tuple[int, ...]
    uncond: tuple[int, ...]
    way: str = "fitted"
    memory: int = 2
    noise: float = 0.01
    site: str = "output"
    steps: int = 0
    family: str = field(default="searched plan", compare=False)
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.way not in WAYS:
            raise UsageError(f"a draft is {', '.join(WAYS)}, not {self.way!r}")
        if self.way != "reused" and self.site != str(OUTPUT):
            raise UsageError(f"{self.site} can be reused, not {self.way}")

    def to_json(self) -> dict[str, Any]:
        return {
            "cond": list(self.cond),
            "uncond": list(self.uncond),
            "way": self.way,
            "memory": self.memory,
            "noise": self.noise,
            "site": self.site,
            "steps": self.steps,
        }

    def calls(self) -> dict[str, int]:
        """Computed steps by branch."""
        return {"cond": len(self.cond), "uncond": len(self.uncond)}


def predict(
    errors: Errors, way: str, memory: int, noise: float, step: int, cond: Sequence[int], uncond: Sequence[int]
) -> Predictions:
    """How the branches that a step does not compute are made up.

    Args:
        cond, uncond: the last steps that each branch computed, newest first; the first is `step` where it computes it.

    Returns:
        Weights by branch; empty where all are computed.
    """
    missing = [
        branch
        for branch, last in (("cond", cond), ("uncond", uncond))
        if branch in errors.branches and last[0] != step
    ]
    if way == "fitted":
        sources, start = _sources(errors, memory, step, cond, uncond)
        return {branch: errors.fit((branch, step), sources, start[branch], noise) for branch in missing}
    found: Predictions = {}
    for branch in missing:
        last = list((cond if branch == "cond" else uncond)[:memory])
        found[branch] = {(branch, last[0]): 1.0}
    if way == "extrapolated" and missing:
        moved = {
            branch: _lagrange(errors, branch, step, (cond if branch == "cond" else uncond)[:memory])
            for branch in missing
        }
        known = all(len(weights) > 1 for weights in moved.values())
        if known and errors.contribution(step, moved) < errors.contribution(step, found):
            return moved
    return found


def contribution(
    errors: Errors, way: str, memory: int, noise: float, step: int, cond: Sequence[int], uncond: Sequence[int]
) -> float:
    """What a step adds to the predicted error of the final latents; arguments as of `predict`."""
    # The newest computed steps are all that it depends on.
    cond, uncond = tuple(cond[: memory + 1]), tuple(uncond[: memory + 1])

    def work() -> float:
        predictions = predict(errors, way, memory, noise, step, cond, uncond)
        return errors.contribution(step, predictions) if predictions else 0.0

    return errors.once((way, memory, noise, step, cond, uncond), work)


def predicted_error(errors: Errors, draft: Draft) -> float:
    """Of the final latents, relative: the length of the sum of what the skipped steps of a draft of the output add.

    Lengths do not add up, errors do: those of neighbouring steps point the same way, and later ones may point back.
    """
    return errors.together({step: _predictions(errors, draft, step) for step in range(errors.steps)})


def make_plan(errors: Errors, draft: Draft, setting: Setting) -> Plan:
    """The plan of a draft, with the weights that the probes give; without actions where nothing is skipped.

    Args:
        errors, setting: of as many steps as the draft has.
    """
    site = Site.parse(draft.site)
    branches = errors.branches
    if all(set(range(setting.steps)) <= set(each) for each in (draft.cond, draft.uncond)[: len(branches)]):
        return Plan(setting, name=draft.name)
    computed = {"cond": draft.cond, "uncond": draft.uncond}
    if draft.way == "reused":
        parts = [masked(setting, site, computed[branch], branches=[branch]) for branch in branches]
        return Plan(
            setting,
            {branch: dict(part.actions[branch]) for branch, part in zip(branches, parts, strict=True)},
            name=draft.name,
        )
    rows: dict[str, list[Action]] = {branch: [Action.COMPUTE] * setting.steps for branch in branches}
    fits: dict[str, dict[int, tuple[Term, ...]]] = {branch: {} for branch in branches}
    for step in range(setting.steps):
        for branch, weights in _predictions(errors, draft, step).items():
            if draft.way == "fitted":
                rows[branch][step] = Action.FIT
                fits[branch][step] = tuple(Term(*source, weight) for source, weight in weights.items())
            else:
                rows[branch][step] = Action.REUSE if len(weights) == 1 else Action.EXTRAPOLATE
    return Plan(
        setting,
        {branch: {site: tuple(row)} for branch, row in rows.items()},
        order=max(draft.memory - 1, 1),
        times=_times(errors) if draft.way == "extrapolated" else None,
        name=draft.name,
        fits={branch: {site: each} for branch, each in fits.items() if each},
    )


def _predictions(errors: Errors, draft: Draft, step: int) -> Predictions:
    cond, uncond = _last(draft.cond, step), _last(draft.uncond, step)
    way, memory, noise = draft.way, draft.memory, draft.noise
    cond, uncond = cond[: memory + 1], uncond[: memory + 1]
    key = ("predictions", way, memory, noise, step, cond, uncond)
    return errors.once(key, lambda: predict(errors, way, memory, noise, step, cond, uncond))


def _last(computed: Sequence[int], step: int) -> tuple[int, ...]:
    return tuple(each for each in reversed(computed) if each <= step)


def _sources(
    errors: Errors, memory: int, step: int, cond: Sequence[int], uncond: Sequence[int]
) -> tuple[list[Vector], dict[str, Mapping[Vector, float]]]:
    """The values that a fit weighs, and the weights by branch that it starts from: the newest value of `cond`; for
    `uncond` what it was less than `cond` when both were computed last."""
    before = [each for each in cond if each < step][:memory]
    if "uncond" not in errors.branches:
        sources: list[Vector] = [("cond", each) for each in before]
        return sources, {"cond": {sources[0]: 1.0}}
    both = list(uncond[:memory])
    wanted = [("cond", step)] if cond[0] == step else [("cond", each) for each in before]
    wanted += [(branch, each) for each in both for branch in ("uncond", "cond")]
    sources = list(dict.fromkeys(wanted))
    while len(sources) > 1 and not errors.within(step, sources):
        oldest = min(each for _, each in sources)
        sources = [each for each in sources if each[1] > oldest]
    start: Weights = {("uncond", both[0]): 1.0}
    for source, weight in ((("cond", cond[0]), 1.0), (("cond", both[0]), -1.0)):
        start[source] = start.get(source, 0.0) + weight
    return sources, {"cond": {("cond", cond[0]): 1.0}, "uncond": start}


def _times(errors: Errors) -> tuple[float, ...]:
    return tuple(float(each) for each in errors.records[0].sigmas[:-1])


def _lagrange(errors: Errors, branch: str, step: int, last: Sequence[int]) -> Weights:
    times, found = _times(errors), {}
    for one in last:
        weight = 1.0
        for other in last:
            if other != one:
                weight *= (times[step] - times[other]) / (times[one] - times[other])
        found[branch, one] = weight
    return found


def uncond_of(cond: Sequence[int], guided: bool) -> tuple[int, ...]:
    """The same steps for the other branch, if there is one."""
    return tuple(cond) if guided else ()


def guided(errors: Errors) -> bool:
    """Whether there are two branches."""
    return len(errors.branches) == len(BRANCHES)
