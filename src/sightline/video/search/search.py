"""A search from its first probe to the plan that it recommends."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from sightline.errors import UsageError
from sightline.progress import Progress, duration, note
from sightline.video.plan import Evidence
from sightline.video.search.baselines import FEWER, baselines
from sightline.video.search.calibrate import measured_gains, measured_growth, skipped_steps
from sightline.video.search.costs import Costs
from sightline.video.search.drafts import Draft
from sightline.video.search.errors import Errors
from sightline.video.search.goal import Goal, Result
from sightline.video.search.levels import FEWEST_STEPS, PROBED, Level, Levels, ladder
from sightline.video.search.measure import ALTERNATE, Measure, Runner, Subject, identity_of
from sightline.video.search.proposals import RACED, choose_sites, named, proposed
from sightline.video.search.race import Entry, Timings, front, generations, run_race
from sightline.video.search.refine import Refinement, tries
from sightline.video.search.state import State
from sightline.video.setting import Setting
from sightline.video.sites import BRANCHES, Site

VERSION = 2  # of what decides a search's course; records of another are not gone on with


@dataclass(frozen=True)
class Task:
    """What is searched, and on what.

    Attributes:
        subjects: prompts and seeds that choose.
        holdout: prompts and seeds that only measure what was chosen.
        rounds, minutes: of the refinement, at most; the minutes are those of its generations.
    """

    goal: Goal
    subjects: tuple[Subject, ...]
    holdout: tuple[Subject, ...] = ()
    rounds: int = 4
    minutes: float = 60.0

    def __post_init__(self) -> None:
        if not self.subjects:
            raise UsageError(
                "no prompt is left to choose by; give more prompts or seeds, or a smaller --holdout"
            )
        if len({*self.subjects, *self.holdout}) != len(self.subjects) + len(self.holdout):
            raise UsageError("the same prompt with the same seed is given twice; give each once")
        if self.rounds < 0 or self.minutes < 0:
            raise UsageError("--rounds and --minutes must be 0 or more")

    @classmethod
    def of(
        cls, goal: Goal, prompts: Sequence[str], seeds: Sequence[int], *, holdout: int, **limits: Any
    ) -> Task:
        """All prompts with the first seed, then with the second, and so on; the last `holdout` of them are held out.

        Raises:
            UsageError: none would be left to choose by.
        """
        every = tuple(Subject(prompt, seed) for seed in seeds for prompt in prompts)
        if not 0 <= holdout < len(every):
            raise UsageError(
                f"--holdout must leave something to choose by: {len(every)} prompts and seeds are given, so at most "
                f"{len(every) - 1}, not {holdout}"
            )
        cut = len(every) - holdout
        return cls(goal, every[:cut], every[cut:], **limits)

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        data["subjects"] = [subject.key() for subject in self.subjects]
        data["holdout"] = [subject.key() for subject in self.holdout]
        return data


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        entries: all that ran on every subject or in the race, the chosen one among them.
        front: those that nothing else beats in seconds and PSNR at once, fastest first.
        chosen: the best for the goal; `reached` says whether it does.
        holdout: what it gave on what was held out; None where nothing was.
        exact: median seconds of the exact denoising loop, and in all.
    """

    task: Task
    entries: tuple[Entry, ...]
    front: tuple[Entry, ...]
    chosen: Entry
    reached: bool
    holdout: Result | None
    exact: tuple[float, float]


def search(task: Task, runner: Runner, state: State) -> Found:
    """Probe, propose, race, refine, and measure what was held out. What `state` has is not done again.

    Raises:
        UsageError: too few steps.
        SightlineError: the exact generation is broken.
    """
    steps = runner.setting().steps
    if steps < FEWEST_STEPS:
        raise UsageError(
            f"a search needs at least {FEWEST_STEPS} steps to leave some out, not {steps}; give more --steps"
        )
    state.clean()
    with Progress("searching", None, unit="generations") as progress:
        measure = Measure(runner, state, progress.advance)
        first = measure.exact(task.subjects[0])
        progress.update(progress.done, estimate(task, measure, first["denoise"] + first["decode"]))
        return _search(task, measure)


def identity(task: Task, runner: Runner) -> dict[str, Any]:
    """What a folder's search is recognised by."""
    return {"version": VERSION, **task.to_json(), "setting": asdict(runner.setting())}


def estimate(task: Task, measure: Measure, seconds: float) -> int:
    """How many generations it takes at most, told with how long that may be."""
    subjects, known, steps = len(task.subjects), 10, measure.setting.steps
    fewer = ladder(steps)
    candidates = (3 + RACED) * len(task.goal.speeds()) + len(fewer) + 6
    before = 2 * subjects + len(skipped_steps(steps)) + 4 + PROBED * len(fewer)
    raced = generations(candidates, known, subjects, task.goal)
    # Most changes fail on the first prompt that they run on; near numbers of steps are probed as well.
    refined = tries(task.goal, task.rounds) * min(subjects, 3) + task.rounds * 2 * (PROBED + 1)
    total = before + raced + refined + (raced + refined) // ALTERNATE + 2 * len(task.holdout) + 4
    minutes = (before + raced * 5 / 4) * seconds * 0.6 + min(refined * seconds * 0.7, task.minutes * 60)
    note(
        f"a generation takes {duration(seconds)} here; up to {total} of them, most of them faster: {duration(minutes)} "
        f"or less. It can be interrupted and goes on where it was; fewer prompts and less --minutes make it shorter"
    )
    return total


def _search(task: Task, measure: Measure) -> Found:
    for subject in task.subjects:
        measure.exact(subject)
    levels, gains = _calibrated(task, measure)
    timings: Timings = {}
    entries = [
        Entry(plan, family, timings, levels[plan.steps].whole() if family == FEWER else None, baseline=True)
        for family, plan in baselines(
            measure.setting,
            task.goal,
            levels.asked.errors.branches,
            levels.asked.errors.records[0].block_count,
        )
    ]
    enter = _Entering(levels, timings, measure.setting, entries)
    wanted = task.goal.budget or 2.0
    drafts = proposed(levels, task.goal.speeds(), wanted, gains)
    entries += [entry for entry in map(enter, drafts) if entry is not None]
    run_race(entries, task.subjects, measure, task.goal)
    known = {entry.draft for entry in entries if entry.draft is not None}
    limit = measure.spent + task.minutes * 60
    Refinement(entries, task.subjects, measure, levels, enter, limit, known).run(task.goal, task.rounds)
    complete = [entry for entry in entries if len(entry.trials) == len(task.subjects)]
    chosen = max(complete, key=lambda entry: task.goal.key(entry.result()))
    holdout = None
    if task.holdout:
        holdout = Result.of([measure.trial(chosen.plan, subject) for subject in task.holdout])
    return Found(
        task=task,
        entries=tuple(entries),
        front=tuple(front(complete)),
        chosen=chosen,
        reached=task.goal.reached(chosen.result()),
        holdout=holdout,
        exact=_exact(complete),
    )


def _calibrated(task: Task, measure: Measure) -> tuple[Levels, dict[str, float]]:
    """The asked steps' level with its growth measured, and the gains of sites."""
    first, steps = task.subjects[0], measure.setting.steps
    records = tuple(measure.probe(subject, steps) for subject in task.subjects[:PROBED])
    errors = Errors(records, measure.setting.guidance or 1.0, np.ones(steps))
    exact = float(np.median([measure.exact(subject)["denoise"] for subject in task.subjects]))
    costs = Costs.of(records[0], exact)
    errors, offset = measured_growth(measure, first, errors)
    gains = measured_gains(measure, first, errors, choose_sites(errors, costs))
    return Levels(measure, task.subjects, Level(errors, costs, 0.0, offset)), gains


class _Entering:
    """Makes entries of drafts, each plan once: several ways may lead to the same one."""

    def __init__(self, levels: Levels, timings: Timings, setting: Setting, entries: Sequence[Entry]) -> None:
        self.levels, self.timings, self.setting = levels, timings, setting
        self.seen = {json.dumps(identity_of(entry.plan)) for entry in entries}
        self.names = Counter(entry.name for entry in entries)

    def __call__(self, draft: Draft) -> Entry | None:
        level, draft = self.levels.of(draft), named(draft, self.setting.steps)
        plan = level.plan(draft, self.setting)
        key = json.dumps(identity_of(plan))
        if key in self.seen or (not plan.actions and plan.steps == self.setting.steps):
            return None
        self.seen.add(key)
        self.names[draft.name] += 1
        number = self.names[draft.name]
        if number > 1:
            draft = replace(draft, name=f"{draft.name} #{number}")
            plan = replace(plan, name=draft.name)
        predicted = level.error(draft) if draft.site == "output" else None
        return Entry(plan, draft.family if plan.actions else FEWER, self.timings, draft, predicted)


def with_evidence(entry: Entry) -> Entry:
    """The plan with what it was found with and what it gave."""
    result = entry.result()
    subjects = list(entry.trials)
    evidence = Evidence(
        prompts=tuple(dict.fromkeys(subject.prompt for subject in subjects)),
        seeds=tuple(dict.fromkeys(subject.seed for subject in subjects)),
        seconds=result.seconds,
        seconds_exact=result.seconds * result.speed,
        fidelity=dict(result.fidelity) | {"latent_error": result.latent_error},
    )
    return replace(entry, plan=replace(entry.plan, evidence=evidence))


def calls(entry: Entry) -> dict[str, float]:
    """Computed calls by branch; a call of which a part is skipped counts whole."""
    plan = entry.plan
    output = Site.parse("output")
    branches = BRANCHES if (plan.setting.guidance or 1.0) > 1 else BRANCHES[:1]
    return {
        branch: sum(plan.computes(branch, step, output) for step in range(plan.steps)) for branch in branches
    }


def _exact(entries: Sequence[Entry]) -> tuple[float, float]:
    trials = [trial for entry in entries for trial in entry.trials.values()]
    return (
        float(np.median([trial.exact_seconds for trial in trials])),
        float(np.median([trial.exact_total for trial in trials])),
    )
