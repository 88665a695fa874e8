"""A search from its first probe to the plan that it recommends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from sightline.errors import UsageError
from sightline.progress import Progress, duration, note
from sightline.video.plan import Evidence
from sightline.video.search.baselines import baselines
from sightline.video.search.calibrate import measured_gains, measured_growth, skipped_steps
from sightline.video.search.costs import Costs
from sightline.video.search.drafts import Draft, make_plan, predicted_error
from sightline.video.search.errors import Errors
from sightline.video.search.goal import Goal, Result
from sightline.video.search.measure import ALTERNATE, Measure, Runner, Subject, identity_of
from sightline.video.search.proposals import Proposer, choose_sites, named
from sightline.video.search.race import Entry, Timings, front, generations, run_race
from sightline.video.search.refine import TRIES, refine
from sightline.video.search.state import State
from sightline.video.sites import BRANCHES, Site

FEWEST_STEPS = 4
VERSION = 1  # of what decides a search's course; records of another are not gone on with


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
    subjects, candidates, known = len(task.subjects), 11 * len(task.goal.speeds()), 10
    calibration = len(skipped_steps(measure.setting.steps)) + 4
    raced = generations(candidates, known, subjects) + task.rounds * TRIES * subjects
    total = 2 * subjects + calibration + raced + raced // ALTERNATE + 2 * len(task.holdout) + 4
    note(
        f"a generation takes {duration(seconds)} here; up to {total} of them, most of them faster: "
        f"{duration(total * seconds * 0.6)} or less. It can be interrupted and goes on where it was"
    )
    return total


def _search(task: Task, measure: Measure) -> Found:
    for subject in task.subjects:
        measure.exact(subject)
    records = tuple(measure.probe(subject) for subject in task.subjects)
    first = task.subjects[0]
    guidance = measure.setting.guidance or 1.0
    errors = Errors(records, guidance, np.ones(measure.setting.steps))
    exact = float(np.median([measure.exact(subject)["denoise"] for subject in task.subjects]))
    costs = Costs.of(records[0], exact)
    errors = measured_growth(measure, first, errors)
    gains = measured_gains(measure, first, errors, choose_sites(errors, costs))
    proposer = Proposer(errors, costs, gains)

    names: dict[str, int] = {}
    timings: Timings = {}

    def enter(draft: Draft) -> Entry:
        draft = named(draft)
        names[draft.name] = names.get(draft.name, 0) + 1
        number = names[draft.name]
        draft = replace(draft, name=draft.name if number == 1 else f"{draft.name} #{number}")
        predicted = predicted_error(errors, draft) if draft.site == "output" else None
        return Entry(make_plan(errors, draft, measure.setting), draft.family, timings, draft, predicted)

    proposed = [enter(draft) for draft in proposer.drafts(task.goal.speeds())]
    # Several ways to a plan may end in the same one: a line that nowhere is nearer than reuse, say.
    entries = list({json.dumps(identity_of(entry.plan)): entry for entry in reversed(proposed)}.values())[
        ::-1
    ]
    entries += [
        Entry(plan, family, timings)
        for family, plan in baselines(measure.setting, task.goal, errors.branches, records[0].block_count)
    ]
    finalists = run_race(entries, task.subjects, measure, task.goal)
    if finalists:
        winner = max(finalists, key=lambda entry: task.goal.key(entry.result()))
        known = {entry.draft for entry in entries if entry.draft is not None}
        winner, tried = refine(
            winner,
            task.subjects,
            measure,
            task.goal,
            errors,
            costs,
            enter,
            rounds=task.rounds,
            seconds=task.minutes * 60,
            known=known,
        )
        entries += tried
    complete = [entry for entry in entries if len(entry.trials) == len(task.subjects)]
    # A plan of fewer steps is none of this setting; it is chosen by asking for fewer steps.
    usable = [entry for entry in complete if entry.plan.steps == measure.setting.steps]
    chosen = max(usable, key=lambda entry: task.goal.key(entry.result()))
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
