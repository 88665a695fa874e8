"""The race: candidates really run, all of them on one prompt, the better half on more, until few have run on all.

What decides is the PSNR that was measured; predictions only said what takes part.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from sightline.video.plan import Plan
from sightline.video.search.drafts import Draft
from sightline.video.search.goal import Goal, Result, Trial
from sightline.video.search.measure import Measure, Subject
from sightline.video.sites import Action

Timings = dict[Hashable, list[Trial]]  # of all trials of a search, by the calls that their plans make


@dataclass
class Entry:
    """A candidate.

    Plans that make the same calls take the same time, so they share what was measured: one lucky run among many would
    otherwise win a race that is about seconds.

    Attributes:
        timings: of the whole search.
        predicted: relative latent error.
        family: of tables and plots.
        draft: what it was made from; None for a rule.
        baseline: it stays in the race to its end, to be compared with.
        trials: by subject.
    """

    plan: Plan
    family: str
    timings: Timings
    draft: Draft | None = None
    predicted: float | None = None
    baseline: bool = False
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
    alive = [entry for entry in entries if not entry.baseline]
    done = 0
    for count in rungs(len(subjects)):
        for subject in subjects[done:count]:
            for entry in entries:
                if entry.baseline or any(entry is each for each in alive):
                    entry.run(measure, subject)
        done = count
        if count < len(subjects):
            alive = _better(alive, goal)
    return alive


def rungs(subjects: int) -> list[int]:
    """On how many subjects candidates have run after each rung: 1, 2, 4, ... all."""
    found = [1]
    while found[-1] < subjects:
        found.append(min(2 * found[-1], subjects))
    return found


def generations(candidates: int, baselines: int, subjects: int, goal: Goal) -> int:
    """How many generations with plans a race takes."""
    total = candidates + baselines
    alive, done = candidates, 1
    for count in rungs(subjects)[1:]:
        alive = _half(alive, len(goal.targets()))
        total += (alive + baselines) * (count - done)
        done = count
    return total


def front(entries: Sequence[Entry]) -> list[Entry]:
    """Those that nothing else is both as fast as and as near as, fastest first; by the speed-up, for seconds drift with
    the machine."""
    known = [(entry.result(), entry) for entry in entries if entry.trials]
    known = [each for each in known if not math.isnan(each[0].psnr)]
    known.sort(key=lambda each: (-each[0].speed, -each[0].psnr))
    best, found = -math.inf, []
    for result, entry in known:
        if result.psnr > best:
            best = result.psnr
            found.append(entry)
    return found


def _half(count: int, fewest: int) -> int:
    return max(math.ceil(count / 2), min(count, fewest))


def _better(entries: list[Entry], goal: Goal) -> list[Entry]:
    """The better half by what was measured: for the goal and for each speed in turn the best that is left."""
    targets = goal.targets()
    wanted = _half(len(entries), len(targets))
    left = [(entry.result(), entry) for entry in entries]
    kept: list[Entry] = []
    while len(kept) < wanted:
        for target in targets[: wanted - len(kept)]:
            best = max(left, key=lambda each: target.key(each[0]))
            left.remove(best)
            kept.append(best[1])
    return [entry for entry in entries if any(entry is each for each in kept)]
