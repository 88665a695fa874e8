"""The race: candidates really run, all of them on one prompt, the better half on more, until few have run on all."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from sightline.video.plan import Plan
from sightline.video.search.drafts import Draft
from sightline.video.search.goal import Goal, Result, Trial
from sightline.video.search.measure import Measure, Subject
from sightline.video.sites import Action

FEWEST = 4  # candidates that are not halved further


Timings = dict[Hashable, list[Trial]]  # of all trials of a search, by the calls that their plans make


@dataclass
class Entry:
    """A candidate.

    Plans that make the same calls take the same time, so they share what was measured: one lucky run among many would
    otherwise win a race that is about seconds.

    Attributes:
        timings: of the whole search.
        family: of tables and plots.
        draft: what it was made from; None for a baseline, which stays in the race to its end.
        trials: by subject.
    """

    plan: Plan
    family: str
    timings: Timings
    draft: Draft | None = None
    predicted: float | None = None
    trials: dict[Subject, Trial] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.plan.name

    @cached_property
    def calls(self) -> Hashable:
        """What decides the plan's seconds: how often each branch does what at which site, and the number of steps."""
        rows = [
            (branch, str(site), sum(action is Action.COMPUTE for action in row))
            for branch, sites in self.plan.actions.items()
            for site, row in sites.items()
        ]
        return (self.plan.steps, *sorted(rows))

    def result(self) -> Result:
        return Result.of(list(self.trials.values()), self.timings.get(self.calls, ()))

    def run(self, measure: Measure, subject: Subject, *, decode: bool = True) -> Trial:
        trial = measure.trial(self.plan, subject, decode=decode)
        if subject not in self.trials:
            self.timings.setdefault(self.calls, []).append(trial)
        self.trials[subject] = trial
        return trial


def run_race(
    entries: Sequence[Entry], subjects: Sequence[Subject], measure: Measure, goal: Goal
) -> list[Entry]:
    """Run the entries on more and more subjects.

    Returns:
        The searched candidates that ran on all of them.
    """
    first = subjects[0]
    alive = [entry for entry in entries if entry.draft is not None]
    for entry in entries:
        entry.run(measure, first, decode=False)
    # What is both slower and further off than others is not worth decoding.
    alive = _better(alive, goal, lambda entry: entry.trials[first].latent_error)
    done = 0
    for count in rungs(len(subjects)):
        for subject in subjects[done:count]:
            for entry in entries:
                if entry.draft is None or entry in alive:
                    entry.run(measure, subject)
        done = count
        if count < len(subjects):
            alive = _better(alive, goal, lambda entry: -entry.result().psnr)
    return alive


def rungs(subjects: int) -> list[int]:
    """On how many subjects candidates have run after each rung: 1, 2, 4, ... all."""
    found = [1]
    while found[-1] < subjects:
        found.append(min(2 * found[-1], subjects))
    return found


def generations(candidates: int, baselines: int, subjects: int) -> int:
    """How many generations with plans a race takes."""
    total = candidates + baselines
    alive, done = _half(candidates), 1
    for count in rungs(subjects)[1:]:
        alive = _half(alive)
        total += (alive + baselines) * (count - done)
        done = count
    return total


def front(entries: Sequence[Entry]) -> list[Entry]:
    """Those that nothing else is both as fast as and as near as, fastest first."""
    known = [(entry.result(), entry) for entry in entries if entry.trials]
    known = [each for each in known if not math.isnan(each[0].psnr)]
    known.sort(key=lambda each: (each[0].seconds, -each[0].psnr))
    best, found = -math.inf, []
    for result, entry in known:
        if result.psnr > best:
            best = result.psnr
            found.append(entry)
    return found


def _half(count: int) -> int:
    return max(math.ceil(count / 2), min(count, FEWEST))


def _better(entries: list[Entry], goal: Goal, badness: Callable[[Entry], float]) -> list[Entry]:
    """The better half: layer by layer of the front of seconds and badness, of the last layer what is nearest to the
    goal."""
    wanted = _half(len(entries))
    kept: list[Entry] = []
    for layer in _layers(entries, badness):
        room = wanted - len(kept)
        if room <= 0:
            break
        kept += sorted(layer, key=lambda entry: _distance(goal, entry.result()))[:room]
    return [entry for entry in entries if entry in kept]


def _distance(goal: Goal, result: Result) -> float:
    return result.latent_error if math.isnan(result.psnr) and goal.budget is None else goal.distance(result)


def _layers(entries: Sequence[Entry], badness: Callable[[Entry], float]) -> Iterator[list[Entry]]:
    left = [(entry.result().seconds, badness(entry), entry) for entry in entries]
    while left:
        layer = [
            each
            for each in left
            if not any(
                other[0] <= each[0] and other[1] <= each[1] and other[:2] != each[:2] for other in left
            )
        ]
        yield [entry for _, _, entry in layer]
        left = [each for each in left if each not in layer]
