"""Local search from the race's winner: small changes, the most promising first, kept where they really win."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from sightline.video.search.costs import Costs
from sightline.video.search.drafts import Draft, predicted_error
from sightline.video.search.errors import Errors
from sightline.video.search.goal import Goal
from sightline.video.search.measure import Measure, Subject
from sightline.video.search.moves import neighbours
from sightline.video.search.race import Entry

TRIES = 5  # changes that really run in a round
Enter = Callable[[Draft], Entry]


def refine(
    winner: Entry,
    subjects: Sequence[Subject],
    measure: Measure,
    goal: Goal,
    errors: Errors,
    costs: Costs,
    enter: Enter,
    *,
    rounds: int,
    seconds: float,
    known: set[Draft],
) -> tuple[Entry, list[Entry]]:
    """Improve a winner while it improves.

    Args:
        enter: makes an entry of a draft.
        rounds, seconds: at most; seconds are those of generations, recorded ones too, so that a search which was
            interrupted ends as one which was not.
        known: drafts that ran already.

    Returns:
        The best entry, and all that ran.
    """
    tried: list[Entry] = []
    limit = measure.spent + seconds
    for _ in range(rounds):
        if winner.draft is None:
            break
        better = None
        for draft in _promising(winner.draft, goal, errors, costs, winner, known):
            if measure.spent >= limit:
                return winner, tried
            known.add(draft)
            entry = enter(draft)
            tried.append(entry)
            if _wins(entry, better or winner, subjects, measure, goal):
                better = entry
        if better is None:
            break
        winner = better
    return winner, tried


def _promising(
    draft: Draft, goal: Goal, errors: Errors, costs: Costs, winner: Entry, known: set[Draft]
) -> list[Draft]:
    """What may win by prediction, best first. Predicted figures are corrected by what the winner really gave."""
    result = winner.result()
    tempo = result.seconds / costs.of_draft(draft)
    found = []
    for other in dict.fromkeys(neighbours(draft, errors)):
        if other in known:
            continue
        speed = result.speed * result.seconds / (costs.of_draft(other) * tempo)
        error = _error(errors, other) / max(_error(errors, draft), 1e-12)
        psnr = result.psnr - 20 * math.log10(max(error, 1e-6))
        if goal.budget is not None:
            if speed >= goal.budget or speed > result.speed:
                found.append((-psnr if goal.reached(result) else -speed, other))
        elif psnr >= (goal.min_psnr or 0) - 0.5 or psnr > result.psnr:
            found.append((-speed if goal.reached(result) else -psnr, other))
    found.sort(key=lambda each: each[0])
    return [other for _, other in found[:TRIES]]


def _error(errors: Errors, draft: Draft) -> float:
    """Of a site draft the order of its neighbours is not predicted here: fewer skipped steps are better."""
    if draft.site != "output":
        return float(errors.steps - len(draft.cond)) or 1e-6
    return predicted_error(errors, draft)


def _wins(entry: Entry, best: Entry, subjects: Sequence[Subject], measure: Measure, goal: Goal) -> bool:
    """Whether it is better on all subjects; the best one's worst subject comes first, for most fail there."""
    worst = min(subjects, key=lambda subject: best.trials[subject].fidelity["psnr"])
    result = best.result()
    for subject in (worst, *(each for each in subjects if each != worst)):
        entry.run(measure, subject)
        now = entry.result()
        reached = goal.key(result)[0] == 1.0
        if reached and goal.budget is not None and now.psnr <= result.psnr:
            return False
        if reached and goal.min_psnr is not None and now.psnr < goal.min_psnr:
            return False
    return goal.key(entry.result()) > goal.key(result)
