"""Local search around the best plans: small changes, the most promising first, kept where they really win.

Nothing is believed that was not generated: a prediction says what to try, the PSNR of the worst prompt what is better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from sightline.video.search.drafts import Draft
from sightline.video.search.goal import Goal
from sightline.video.search.levels import Levels
from sightline.video.search.measure import Measure, Subject
from sightline.video.search.moves import neighbours
from sightline.video.search.proposals import Proposer
from sightline.video.search.race import Entry

TRIES, TRIES_BESIDE = 5, 2  # changes that really run in a round, for the goal and for each other speed
_SLACK = 1.005  # seconds that a change may cost more by expectation, for a goal that is a speed
Enter = Callable[[Draft], Entry | None]


@dataclass
class Refinement:
    """The state of one.

    Attributes:
        entries: all so far; what runs is added.
        enter: makes an entry of a draft, or None where its plan ran already.
        limit: of `measure.spent`, recorded seconds too, so that a search which was interrupted ends as one which was
            not.
        known: drafts that were tried.
    """

    entries: list[Entry]
    subjects: Sequence[Subject]
    measure: Measure
    levels: Levels
    enter: Enter
    limit: float
    known: set[Draft]

    def run(self, goal: Goal, rounds: int) -> None:
        """Improve what is best for the goal, and for other speeds, while it improves."""
        open_targets = list(goal.targets())
        for _ in range(rounds):
            for target in list(open_targets):
                tries = TRIES if target is goal else TRIES_BESIDE
                if not self._round(target, tries):
                    open_targets.remove(target)
                if self.measure.spent >= self.limit:
                    return

    def _round(self, goal: Goal, tries: int) -> bool:
        """Whether something better was found."""
        complete = [entry for entry in self.entries if len(entry.trials) == len(self.subjects)]
        winner = max(complete, key=lambda entry: goal.key(entry.result()), default=None)
        if winner is None or winner.draft is None:
            return False
        better, left = winner, tries
        for draft in self._promising(winner, winner.draft, goal):
            if left == 0 or self.measure.spent >= self.limit:
                break
            self.known.add(draft)
            entry = self.enter(draft)
            if entry is None:
                continue
            left -= 1
            self.entries.append(entry)
            if self._wins(entry, better, goal):
                better = entry
        return better is not winner

    def _promising(self, winner: Entry, draft: Draft, goal: Goal) -> list[Draft]:
        """What may win by prediction, best first. Predicted figures are corrected by what the winner really gave."""
        result, level = winner.result(), self.levels.of(draft)
        seconds = level.costs.of_draft(draft)
        found = []
        for other in dict.fromkeys(self._changed(draft, goal)):
            if other in self.known:
                continue
            there = self.levels.of(other)
            speed = result.speed * seconds / there.costs.of_draft(other)
            psnr = result.psnr + self._gain(draft, other)
            if goal.budget is not None:
                if speed * _SLACK >= goal.budget or speed > result.speed:
                    found.append((-psnr if goal.reached(result) else -speed, other))
            elif psnr >= (goal.min_psnr or 0) - 0.5 or psnr > result.psnr:
                found.append((-speed if goal.reached(result) else -psnr, other))
        found.sort(key=lambda each: each[0])
        return [other for _, other in found]

    def _changed(self, draft: Draft, goal: Goal) -> Iterator[Draft]:
        yield from neighbours(draft, self.levels.of(draft).errors)
        if draft.site != "output":
            return
        asked = self.levels.asked.costs
        seconds = self.levels.of(draft).costs.of_draft(draft)
        if goal.budget is not None:
            seconds = max(seconds, asked.exact() / goal.budget)
        for level in self.levels.near(draft):
            if level.costs.exact() <= seconds * _SLACK:
                yield level.whole()
            yield from Proposer(level, {}).best(seconds, asked.exact())[:1]

    def _gain(self, draft: Draft, other: Draft) -> float:
        """In dB, by prediction. Of a site draft it is not predicted: fewer skipped steps are better."""
        if draft.site != "output":
            return float(len(other.cond) - len(draft.cond))
        return self.levels.of(other).psnr(other) - self.levels.of(draft).psnr(draft)

    def _wins(self, entry: Entry, best: Entry, goal: Goal) -> bool:
        """Whether it is better on all subjects; the best one's worst subject comes first, for most fail there."""
        worst = min(self.subjects, key=lambda subject: best.trials[subject].fidelity["psnr"])
        result = best.result()
        for subject in (worst, *(each for each in self.subjects if each != worst)):
            entry.run(self.measure, subject)
            now = entry.result()
            reached = goal.reached(result)
            if reached and goal.budget is not None and now.psnr <= result.psnr:
                return False
            if reached and goal.min_psnr is not None and now.psnr < goal.min_psnr:
                return False
        return goal.key(entry.result()) > goal.key(result)


def tries(goal: Goal, rounds: int) -> int:
    """How many changes run at most."""
    return rounds * (TRIES + TRIES_BESIDE * (len(goal.targets()) - 1))
