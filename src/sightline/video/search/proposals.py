"""Drafts worth running: for each speed the shortest paths through the probes' errors, on several numbers of steps."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from sightline.video.search.costs import Costs
from sightline.video.search.drafts import Draft, contribution, guided, predicted_error, uncond_of
from sightline.video.search.errors import Errors
from sightline.video.search.levels import Level, Levels
from sightline.video.search.moves import neighbours
from sightline.video.search.paths import Cost, History, best_paths
from sightline.video.search.record import LONGEST
from sightline.video.sites import OUTPUT, Kind, Site

NOISE = 0.01
LONGEST_UNCOND = 9  # it may rest longer beside a computed cond; two gaps of it are within the probe's window
SCHEDULES = 4  # of cond alone that are thinned for uncond
CLIMBS = 3  # changes at most by which a draft is improved by prediction
RACED = 3  # numbers of fewer steps for a speed, with the best draft of each, beside three on the asked steps


def proposed(
    levels: Levels, speeds: Sequence[float], wanted: float, gains: Mapping[str, float]
) -> list[Draft]:
    """What is worth racing: for each speed-up of the denoising loop what promises the best PSNR on any number of
    steps, and every number of steps with nothing skipped.

    Args:
        wanted: the speed-up at which the other kinds of drafts are tried as well.
        gains: see `Proposer`.
    """
    exact = levels.asked.costs.exact()
    proposers = {levels.asked.steps: Proposer(levels.asked, gains)}
    found: dict[Draft, None] = {}
    for speed in speeds:
        drafts: list[Draft] = []
        for level in (levels.asked, *levels.fewer(speed)):
            proposer = proposers.setdefault(level.steps, Proposer(level, {}))
            best = proposer.best(exact / speed, exact)
            if level is levels.asked:
                found.update(dict.fromkeys(best))
            else:
                drafts += best[:1]
                found.setdefault(level.whole())
        drafts.sort(key=lambda draft: -levels.of(draft).psnr(draft))
        found.update(dict.fromkeys(drafts[:RACED]))
    found.update(dict.fromkeys(proposers[levels.asked.steps].others(exact / wanted)))
    return list(found)


class Proposer:
    """Drafts of one level.

    Args:
        gains: by site, how much of a change that is reused too late arrives in the velocity, relative to the change;
            empty leaves the sites out.
    """

    def __init__(self, level: Level, gains: Mapping[str, float]) -> None:
        self.level, self.errors, self.costs, self.gains = level, level.errors, level.costs, gains
        self._schedules: dict[Hashable, dict[int, Draft]] = {}

    def best(self, seconds: float, exact: float) -> list[Draft]:
        """Drafts of the output that take so many seconds: the best fitted and the best two extrapolated ones by
        prediction, best first.

        Args:
            exact: seconds of the exact run; a level that takes fewer than asked for without skipping has none.
        """
        if not self.costs.exact() > seconds * (1 + 1e-9) or not exact > seconds:
            return []
        found: list[Draft] = []
        for way, count in (("fitted", 1), ("extrapolated", 2)):
            drafts = [*self._together(way, seconds), *self._apart(way, seconds)]
            if way == "extrapolated":
                # The schedule of a lower degree is a good one of a higher; its own would take long to find.
                drafts = [replace(draft, memory=each) for draft in drafts for each in (2, 3, 4)]
            drafts.sort(key=self.level.error)
            climbed = [self.climbed(draft) for draft in drafts[:count]]
            found += dict.fromkeys((*climbed, *drafts[: max(count - len(climbed), 0)]))
        return sorted(dict.fromkeys(found), key=self.level.error)

    def others(self, seconds: float) -> list[Draft]:
        """What is no fit: extrapolated, reused, and of the sites."""
        count = min(self.costs.most(seconds), self.errors.steps)
        kinds = (("extrapolated", 2), ("extrapolated", 3), ("reused", 1)) if count >= 1 else ()
        found = [self.joint(way, memory, "sum").get(count) for way, memory in kinds]
        return [draft for draft in found if draft is not None] + self._sites(seconds)

    def joint(self, way: str, memory: int, form: str) -> dict[int, Draft]:
        """Both branches compute the same steps: the best for each number of them."""
        key = (way, memory, form)
        if key not in self._schedules:
            cost = self._joint_cost(way, memory)
            paths = best_paths(self.errors.steps, cost, memory=memory, longest=LONGEST, form=form)
            both = guided(self.errors)
            self._schedules[key] = {
                count: self._draft(path.steps, uncond_of(path.steps, both), way, memory)
                for count, path in paths.items()
            }
        return self._schedules[key]

    def thinned(self, way: str, cond: tuple[int, ...], memory: int) -> dict[int, Draft]:
        """`cond` computes these steps, `uncond` fewer of them: the best for each number."""
        errors, key = self.errors, (way, cond, memory)
        if key not in self._schedules:

            def cost(history: History, step: int) -> float:
                last = tuple(each for each in reversed(cond) if each <= step)
                return contribution(errors, way, memory, NOISE, step, last, history)

            paths = best_paths(errors.steps, cost, memory=memory, longest=LONGEST_UNCOND, allowed=cond)
            self._schedules[key] = {
                count: self._draft(cond, path.steps, way, memory) for count, path in paths.items()
            }
        return self._schedules[key]

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
        return self._draft(steps, uncond_of(steps, guided(self.errors)), "reused", 1, str(site))

    def _draft(
        self, cond: tuple[int, ...], uncond: tuple[int, ...], way: str, memory: int, site: str = "output"
    ) -> Draft:
        return Draft(cond, uncond, way, memory, NOISE, site, self.errors.steps)

    def _together(self, way: str, seconds: float) -> list[Draft]:
        count = min(self.costs.most(seconds), self.errors.steps)
        kinds = [(1, "sum"), (2, "sum"), (2, "worst")] if way == "fitted" else [(2, "sum"), (2, "worst")]
        found = [self.joint(way, memory, form).get(count) for memory, form in kinds if count >= 1]
        return [draft for draft in found if draft is not None]

    def _apart(self, way: str, seconds: float) -> list[Draft]:
        """The best ways to split the seconds: fewer steps without the prompt pay for more with it, up to all."""
        if not guided(self.errors):
            return []
        cond, uncond = self.costs.call["cond"], self.costs.call["uncond"]
        left = seconds - self.costs.rest
        least = max(self.costs.most(seconds), 1)
        most = min(int((left - uncond) / cond + 1e-9), self.errors.steps)
        found: list[Draft | None] = []
        if most <= least:
            return []
        for count in sorted({round(each) for each in np.linspace(least + 1, most, SCHEDULES)}):
            others = int((left - count * cond) / uncond + 1e-9)
            for memory in (1, 2) if way == "fitted" else (2,):
                schedule = self.joint(way, memory, "sum").get(count)
                if schedule is not None:
                    found.append(self.thinned(way, schedule.cond, memory).get(others))
        return [draft for draft in found if draft is not None]

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


def named(draft: Draft, asked: int) -> Draft:
    """With a name that says what it does.

    Args:
        asked: the number of steps that need not be told.
    """
    if draft.name:
        return draft
    cond, uncond = len(draft.cond), len(draft.uncond)
    steps = draft.steps or asked
    if cond == steps and uncond in (0, cond):
        return replace(draft, name=f"{steps} steps")
    calls = f"{cond}" if uncond in (0, cond) else f"{cond}+{uncond}"
    how = {"fitted": f"fit {draft.memory}", "extrapolated": f"line {draft.memory - 1}", "reused": "reuse"}[
        draft.way
    ]
    where = "" if draft.site == str(OUTPUT) else f" {draft.site}"
    few = "" if steps == asked else f" of {steps}"
    return replace(draft, name=f"{how}{where} {calls}{few}")
