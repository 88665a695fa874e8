"""Local search from the race's winner: small changes, the most promising first, kept where they really win."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from sightline.video.search.costs import Costs
from sightline.video.search.drafts import Draft, guided, predicted_error
from sightline.video.search.errors import Errors
from sightline.video.search.goal import Goal
from sightline.video.search.measure import Measure, Subject
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


def neighbours(draft: Draft, errors: Errors) -> Iterator[Draft]:
    """A computed step moved by one or two, added or removed, in both branches or without the prompt only; a look
    further or less far back; fits that trust the probes more or less. Site drafts move in both branches."""
    both = guided(errors)
    output = draft.site == "output"
    for moved in _moves(draft.cond, range(1, errors.steps)):
        alike = moved if draft.uncond == draft.cond else _among(draft.uncond, moved)
        yield replace(draft, cond=moved, uncond=alike if both else (), name="")
    if both and output and draft.way == "fitted":
        for moved in _moves(draft.uncond, draft.cond[1:]):
            yield replace(draft, uncond=moved, name="")
    if draft.way == "fitted":
        for memory in (1, 2, 3):
            yield replace(draft, memory=memory, name="")
        for noise in (0.003, 0.01, 0.03, 0.1):
            yield replace(draft, noise=noise, name="")


def _moves(computed: tuple[int, ...], allowed: Sequence[int]) -> Iterator[tuple[int, ...]]:
    free = [step for step in allowed if step not in computed]
    for step in computed[1:]:
        rest = [each for each in computed if each != step]
        yield tuple(rest)
        near = sorted(free, key=lambda each: (abs(each - step), each))[:4]
        for other in near:
            yield tuple(sorted((*rest, other)))
    for step in free:
        yield tuple(sorted((*computed, step)))


def _among(uncond: Sequence[int], cond: Sequence[int]) -> tuple[int, ...]:
    """The same steps where cond computes them, else the nearest that it does."""
    return tuple(sorted({min(cond, key=lambda each: (abs(each - step), each)) for step in uncond}))


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
