"""A step-cache plan: data that says what every step computes and what it takes from earlier ones.

Each method of step caching (fixed intervals, masks, thresholds tried out beforehand) is a way to make such a table;
running one asks nothing of the data, so every rank of a group does the same and nothing waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sightline.errors import SightlineError, UsageError
from sightline.files import read_object, write_json
from sightline.video.fits import Fits, asked_of, check_fits, fits_from_json, fits_to_json
from sightline.video.schedule import Directive, directives
from sightline.video.setting import Setting
from sightline.video.sites import BRANCHES, Action, Site

SCHEMA = "sightline-step-cache-plan"
VERSION = 1
MOST_ORDER = 3

Actions = Mapping[str, Mapping[Site, tuple[Action, ...]]]


@dataclass(frozen=True)
class Evidence:
    """What a plan was found with and what it gave there; all of it for people and for comparing plans.

    Attributes:
        prompts, seeds: of the generations that were looked at.
        seconds, seconds_exact: of the denoising loop, with the plan and without.
        fidelity: numbers by name, the worst prompt's (`sightline.video.fidelity`).
    """

    prompts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    seconds: float | None = None
    seconds_exact: float | None = None
    fidelity: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind, form in (("prompts", str, "texts"), ("seeds", int, "whole numbers")):
            if not all(type(value) is kind for value in getattr(self, name)):
                raise UsageError(f"{name} of the evidence must be {form}, not {list(getattr(self, name))!r}")
        if not isinstance(self.fidelity, Mapping):
            raise UsageError(f"fidelity of the evidence must be an object, not {self.fidelity!r}")
        numbers = {"seconds": self.seconds, "seconds_exact": self.seconds_exact, **self.fidelity}
        for name, value in numbers.items():
            if value is not None and (type(value) not in (int, float) or not math.isfinite(value)):
                raise UsageError(f"{name} of the evidence must be a finite number, not {value!r}")


@dataclass(frozen=True)
class Plan:
    """What each branch does at each site in each step.

    Attributes:
        setting: the generation it is for.
        actions: by branch (`cond`, `uncond`) and site, one action a step. A branch or site that is absent is
            computed.
        order: degree of the polynomial of `extrapolate`, 1 to 3; lower where fewer steps were computed before.
        times: the coordinate of the steps for extrapolation (sigmas, say), strictly rising or falling; the step's
            number without.
        name: how it came about.
        evidence: what it was found with and measured at.
        fits: what the steps of action `fit` are made of: by branch, site and step the terms of a sum, each a value
            of the same site that an earlier step computed, in this branch or the other; for `uncond` also what
            `cond` computes in the same step.

    Raises:
        UsageError: it cannot be carried out, with branch, site and step.
    """

    setting: Setting
    actions: Actions = field(default_factory=dict)
    order: int = 1
    times: tuple[float, ...] | None = None
    name: str = ""
    evidence: Evidence = field(default_factory=Evidence)
    fits: Fits = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise UsageError(f"name must be a text, not {self.name!r}")
        if type(self.order) is not int or not 1 <= self.order <= MOST_ORDER:
            raise UsageError(f"order must be a whole number from 1 to {MOST_ORDER}, not {self.order!r}")
        self._check_times()
        for branch in (*self.actions, *self.fits):
            if branch not in BRANCHES:
                raise UsageError(f"{branch!r} is no branch; the branches are {' and '.join(BRANCHES)}")
        for branch, sites in self.actions.items():
            self._check_sites(branch, sites)
            try:
                self.directives(branch)
            except UsageError as error:
                raise UsageError(f"branch {branch}: {error}") from error
        check_fits(self.fits, self.actions, {branch: self.directives(branch) for branch in BRANCHES})

    @property
    def steps(self) -> int:
        return self.setting.steps

    def directives(self, branch: str) -> dict[Site, list[Directive]]:
        """What each part of the model does at each step of a branch."""
        asked = asked_of(branch, self.fits)
        # What only the other branch asks for is computed in every step.
        always = dict.fromkeys(asked, (Action.COMPUTE,) * self.steps)
        sites = always | dict(self.actions.get(branch, {}))
        if not sites:
            return {}
        times = self.times or tuple(map(float, range(self.steps)))
        return directives(sites, times, self.order, branch=branch, fits=self.fits.get(branch), asked=asked)

    def computes(self, branch: str, step: int, part: Site) -> bool:
        """Whether a part of the model, kept or not, runs in this step."""
        sites = self.actions.get(branch, {})
        around = [site for site in sites if part.inside(site) or part in site.parts()]
        return all(sites[site][step] is Action.COMPUTE for site in around)

    def blocks(self) -> int:
        """How many blocks a model needs for it."""
        return max((site.stop for sites in self.actions.values() for site in sites), default=0)

    def save(self, path: str | Path) -> None:
        """Write it as JSON.

        Raises:
            SightlineError: it cannot be written.
        """
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan's file.

        Raises:
            SightlineError: it cannot be read, or is no plan, with the field at fault.
        """
        try:
            return cls.from_json(read_object(Path(path)))
        except UsageError as error:
            raise SightlineError(f"{path} is no plan to use: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON has it: a letter a step, so that two of them can be compared by eye."""
        setting = {key: value for key, value in asdict(self.setting).items() if value is not None}
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "name": self.name,
            "setting": setting,
            "order": self.order,
            "times": None if self.times is None else list(self.times),
            "actions": {
                branch: {str(site): "".join(action.value for action in row) for site, row in sites.items()}
                for branch, sites in self.actions.items()
            },
            "evidence": asdict(self.evidence),
        } | ({"fits": fits_to_json(self.fits)} if self.fits else {})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The plan that `to_json` wrote.

        Raises:
            UsageError: a field is missing, unknown or wrong.
        """
        if data.get("schema") != SCHEMA:
            raise UsageError(f"schema must be {SCHEMA!r}, not {data.get('schema')!r}")
        if data.get("version") != VERSION:
            raise UsageError(
                f"version must be {VERSION}, not {data.get('version')!r}; it was written by another release"
            )
        given = {key: value for key, value in data.items() if key not in ("schema", "version")}
        given["setting"] = _built(Setting, given.get("setting"), "setting")
        given["evidence"] = _evidence(given.get("evidence", {}))
        given["actions"] = _actions(given.get("actions"))
        given["fits"] = fits_from_json(given.get("fits", {}))
        if given.get("times") is not None:
            given["times"] = tuple(_list(given["times"], "times"))
        return _built(cls, given, "the plan")

    def _check_times(self) -> None:
        if self.times is None:
            return
        if len(self.times) != self.steps:
            raise UsageError(f"times has {len(self.times)} entries for {self.steps} steps; give one a step")
        if not all(type(time) in (int, float) and math.isfinite(time) for time in self.times):
            raise UsageError("times must be finite numbers")
        gaps = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        if not (all(gap > 0 for gap in gaps) or all(gap < 0 for gap in gaps)):
            raise UsageError("times must rise or fall at every step")

    def _check_sites(self, branch: str, sites: Mapping[Site, Sequence[Action]]) -> None:
        known = sorted(sites)
        for site in known:
            if len(sites[site]) != self.steps:
                raise UsageError(
                    f"branch {branch}: {site} has {len(sites[site])} actions for {self.steps} steps; give one a step"
                )
        for number, site in enumerate(known):
            for other in known[number + 1 :]:
                if site.overlaps(other):
                    raise UsageError(f"branch {branch}: {site} and {other} overlap; keep each block once")


def _built(kind: Any, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise UsageError(f"{where} must be an object, not {values!r}")
    unknown = sorted(set(values) - set(kind.__dataclass_fields__))
    if unknown:
        raise UsageError(f"{where} has an unknown field {unknown[0]!r}")
    if "steps" in kind.__dataclass_fields__ and "steps" not in values:
        raise UsageError(f"{where} has no steps")
    return kind(**values)


def _evidence(values: Any) -> Evidence:
    if isinstance(values, Mapping):
        values = dict(values)
        for name in ("prompts", "seeds"):
            values[name] = tuple(_list(values.get(name, []), f"evidence.{name}"))
    return _built(Evidence, values, "evidence")


def _actions(values: Any) -> Actions:
    if not isinstance(values, Mapping) or not all(isinstance(sites, Mapping) for sites in values.values()):
        raise UsageError("actions must be an object of branches, each an object of sites")
    return {
        branch: {Site.parse(name): _row(row, f"{branch} {name}") for name, row in sites.items()}
        for branch, sites in values.items()
    }


def _row(text: Any, where: str) -> tuple[Action, ...]:
    if not isinstance(text, str):
        raise UsageError(f"actions of {where} must be a text with one letter a step, not {text!r}")
    for step, letter in enumerate(text):
        if letter not in tuple(Action):
            letters = ", ".join(f"{action.value} ({action.name.lower()})" for action in Action)
            raise UsageError(f"step {step} of {where} is {letter!r}, and not one of {letters}")
    return tuple(Action(letter) for letter in text)


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise UsageError(f"{where} must be a list, not {value!r}")
    return value
