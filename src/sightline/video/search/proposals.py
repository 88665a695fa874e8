"""Drafts worth running: for each speed the shortest paths through the probes' errors, in several forms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from sightline.video.search.costs import Costs
from sightline.video.search.drafts import Draft, contribution, guided, predicted_error, uncond_of
from sightline.video.search.errors import Errors
from sightline.video.search.moves import neighbours
from sightline.video.search.paths import Cost, History, best_paths
from sightline.video.search.record import LONGEST
from sightline.video.sites import OUTPUT, Kind, Site

NOISE = 0.01
LONGEST_UNCOND = 9  # it may rest longer beside a computed cond; two gaps of it are within the probe's window
SCHEDULES = 6  # of cond alone that are thinned for uncond
CLIMBERS, CLIMBS = 2, 8  # drafts of a speed that are improved by prediction, and changes to each at most
SPLITS = 2  # of the best shares between the branches that are raced


class Proposer:
    """Drafts from errors and costs.

    Args:
        errors: of the probes.
        costs: seconds by kind of call.
        gains: by site, how much of a change that is reused too late arrives in the velocity, relative to the change.
    """

    def __init__(self, errors: Errors, costs: Costs, gains: Mapping[str, float]) -> None:
        self.errors, self.costs, self.gains = errors, costs, gains

    def drafts(self, speeds: Iterable[float]) -> list[Draft]:
        """What is worth racing for these speed-ups of the denoising loop, without repetition."""
        found: dict[Draft, None] = {}
        for speed in speeds:
            seconds = self.costs.exact() / speed
            drafts = [*self._together(seconds), *self._apart(seconds)]
            fits = sorted(
                (draft for draft in drafts if draft.way == "fitted"),
                key=lambda draft: predicted_error(self.errors, draft),
            )
            climbed = [self.climbed(draft) for draft in fits[:CLIMBERS]]
            for draft in (*climbed, *drafts, *self._sites(seconds)):
                found.setdefault(named(draft))
        return list(found)

    def joint(self, way: str, memory: int, form: str, counts: Sequence[int]) -> dict[int, Draft]:
        """Both branches compute the same steps: the best for each number of them."""
        cost = self._joint_cost(way, memory)
        paths = best_paths(self.errors.steps, cost, memory=memory, longest=LONGEST, form=form, counts=counts)
        both = guided(self.errors)
        return {
            count: Draft(path.steps, uncond_of(path.steps, both), way, memory, NOISE)
            for count, path in paths.items()
        }

    def thinned(self, cond: Sequence[int], memory: int, counts: Sequence[int]) -> dict[int, Draft]:
        """`cond` computes these steps, `uncond` only so many of them: the best for each number."""
        errors = self.errors

        def cost(history: History, step: int) -> float:
            last = tuple(each for each in reversed(cond) if each <= step)
            return contribution(errors, "fitted", memory, NOISE, step, last, history)

        paths = best_paths(
            errors.steps, cost, memory=memory, longest=LONGEST_UNCOND, allowed=cond, counts=counts
        )
        return {
            count: Draft(tuple(cond), path.steps, "fitted", memory, NOISE) for count, path in paths.items()
        }

    def climbed(self, draft: Draft) -> Draft:
        """Small changes that cost no more seconds, as long as they lower the predicted error: shortest paths add up
        lengths, and the errors of steps far apart may cancel."""
        least, limit = predicted_error(self.errors, draft), self.costs.of_draft(draft) * (1 + 1e-9)
        for _ in range(CLIMBS):
            others = [
                other
                for other in neighbours(draft, self.errors)
                if other.noise == draft.noise and self.costs.of_draft(other) <= limit
            ]
            best = min(others, key=lambda other: predicted_error(self.errors, other), default=draft)
            error = predicted_error(self.errors, best)
            if error >= least * 0.99:
                break
            draft, least = best, error
        return draft

    def at(self, site: Site, count: int) -> Draft | None:
        """The best schedule that reuses a site and computes it in so many steps."""
        paths = best_paths(self.errors.steps, self._site_cost(site), longest=LONGEST, counts=[count])
        if count not in paths:
            return None
        steps = paths[count].steps
        return Draft(steps, uncond_of(steps, guided(self.errors)), "reused", 1, site=str(site))

    def _together(self, seconds: float) -> list[Draft]:
        count = min(self.costs.most(seconds), self.errors.steps)
        if count < 1:
            return []
        kinds = [("fitted", memory, form) for memory in (1, 2, 3) for form in ("sum", "worst")]
        kinds += [("extrapolated", 2, "sum"), ("extrapolated", 3, "sum"), ("reused", 1, "sum")]
        found = [self.joint(way, memory, form, [count]) for way, memory, form in kinds]
        return [drafts[count] for drafts in found if count in drafts]

    def _apart(self, seconds: float) -> list[Draft]:
        """The best ways to split the seconds: fewer steps without the prompt pay for more with it."""
        if not guided(self.errors):
            return []
        cond, uncond = self.costs.call["cond"], self.costs.call["uncond"]
        left = seconds - self.costs.rest
        least = max(self.costs.most(seconds), 1)
        most = min(int((left - uncond) / cond + 1e-9), self.errors.steps)
        found: list[Draft] = []
        counts = (
            sorted({round(each) for each in np.linspace(least + 1, most, SCHEDULES)}) if most > least else []
        )
        for memory in (1, 2):
            schedules = self.joint("fitted", memory, "sum", counts)
            for count, draft in schedules.items():
                others = int((left - count * cond) / uncond + 1e-9)
                found += self.thinned(draft.cond, memory, [others]).values()
        found.sort(key=lambda draft: predicted_error(self.errors, draft))
        return found[:SPLITS]

    def _sites(self, seconds: float) -> list[Draft]:
        found: list[Draft] = []
        for name in self.gains:
            site = Site.parse(name)
            count = min(self.costs.most(seconds, site), self.errors.steps)
            draft = self.at(site, count) if count >= 1 else None
            found += [draft] if draft is not None else []
        return found

    def _joint_cost(self, way: str, memory: int) -> Cost:
        errors = self.errors

        def cost(history: History, step: int) -> float:
            return contribution(errors, way, memory, NOISE, step, history, history)

        return cost

    def _site_cost(self, site: Site) -> Cost:
        moved = site_moves(self.errors, site)
        gain = self.gains[str(site)]

        def cost(history: History, step: int) -> float:
            return float(self.errors.weight(step) * gain * moved[step - history[0] - 1, step])

        return cost


def site_moves(errors: Errors, site: Site) -> np.ndarray:
    """How far what a site gives moved in 1 to `LONGEST` steps, root mean square of branches and probes, relative to
    the final latents: [LONGEST, S]; infinite before there are so many steps."""
    squares = []
    for record in errors.records:
        inside = slice(site.start, site.stop)
        if site.kind is Kind.BLOCKS:
            square = record.blocks[..., inside, inside].sum((-2, -1))
        else:
            square = record.attention[..., inside].sum(-1)
        squares.append(square.mean(0) / float(record.final[0]))
    return np.nan_to_num(np.sqrt(np.maximum(np.mean(squares, axis=0), 0)), nan=np.inf)


def choose_sites(errors: Errors, costs: Costs, *, ranges: int = 2) -> list[Site]:
    """The ranges of blocks that move least for what they save, one for each share of a call that is saved; and all
    self-attention."""
    count = errors.records[0].block_count
    if count < 2:
        return []
    whole = [Site(Kind.BLOCKS, a, b) for a in range(count) for b in range(a + 1, count + 1) if b - a < count]
    found: list[Site] = []
    for share in np.linspace(0.9, 0.5, ranges):
        big = [
            site for site in whole if costs.saved(site) >= share * costs.saved(Site(Kind.BLOCKS, 0, count))
        ]
        best = min(big, key=lambda site: float(np.mean(site_moves(errors, site)[0, 1:])), default=None)
        if best is not None and best not in found:
            found.append(best)
    return [*found, Site(Kind.ATTENTION, 0, count)]


def named(draft: Draft) -> Draft:
    """With a name that says what it does."""
    if draft.name:
        return draft
    cond, uncond = len(draft.cond), len(draft.uncond)
    calls = f"{cond}" if uncond in (0, cond) else f"{cond}+{uncond}"
    how = {"fitted": f"fit {draft.memory}", "extrapolated": f"line {draft.memory - 1}", "reused": "reuse"}[
        draft.way
    ]
    where = "" if draft.site == str(OUTPUT) else f" {draft.site}"
    return replace(draft, name=f"{how}{where} {calls}")
