"""Numbers of solver steps, each with its probes: a plan may take fewer steps than were asked for and skip in those."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sightline.video.builders import fewer_steps
from sightline.video.plan import Plan
from sightline.video.search.costs import Costs
from sightline.video.search.drafts import Draft, make_plan, predicted_error, uncond_of
from sightline.video.search.errors import Errors
from sightline.video.search.measure import Measure, Subject
from sightline.video.setting import Setting

PROBED = 3  # prompts and seeds whose exact run is looked at, for each number of steps
FEWEST_STEPS = 4
SHARES = (0.8, 0.66, 0.56, 0.5, 0.44, 0.4, 0.34, 0.28, 0.24)  # of the asked steps
_LEAST_ERROR = 1e-9


@dataclass(frozen=True)
class Level:
    """A number of solver steps.

    Attributes:
        errors, costs: of a generation of so many steps; `costs` in seconds of the exact one's calls.
        base: the relative latent error of these steps with nothing skipped, against the asked steps.
        offset: what the decoder makes of a latent error: PSNR is this less 20 log10 of the error, in dB.
    """

    errors: Errors
    costs: Costs
    base: float
    offset: float

    @property
    def steps(self) -> int:
        return self.errors.steps

    def whole(self) -> Draft:
        """Nothing is skipped."""
        computed = tuple(range(self.steps))
        return Draft(computed, uncond_of(computed, len(self.errors.branches) > 1), steps=self.steps)

    def error(self, draft: Draft) -> float:
        """Predicted relative latent error of a draft of the output: what the missing steps and the skipped calls make
        of it, which nothing relates."""
        return math.hypot(self.base, predicted_error(self.errors, draft))

    def psnr(self, draft: Draft) -> float:
        """Predicted, in dB; the prediction only says what is worth running."""
        return self.offset - 20 * math.log10(max(self.error(draft), _LEAST_ERROR))

    def plan(self, draft: Draft, setting: Setting) -> Plan:
        return make_plan(self.errors, draft, replace(setting, steps=self.steps))


class Levels:
    """Levels by number of steps, probed when they are first asked for.

    Args:
        asked: the level of the asked steps.
    """

    def __init__(self, measure: Measure, subjects: Sequence[Subject], asked: Level) -> None:
        self.measure, self.subjects, self.asked = measure, tuple(subjects[:PROBED]), asked
        self._known = {asked.steps: asked}

    def of(self, draft: Draft) -> Level:
        return self[draft.steps or self.asked.steps]

    def __getitem__(self, steps: int) -> Level:
        if steps not in self._known:
            self._known[steps] = self._probed(steps)
        return self._known[steps]

    def fewer(self, speed: float) -> list[Level]:
        """The ladder below the asked steps, down to what is so many times as fast without skipping."""
        least = self.asked.steps / speed
        found = [steps for steps in ladder(self.asked.steps) if steps >= 0.9 * least]
        return [self[steps] for steps in found]

    def near(self, draft: Draft) -> list[Level]:
        """One of a few more and one of a few fewer steps than a draft has."""
        steps, asked = draft.steps or self.asked.steps, self.asked.steps
        stride = max(round(steps / 25), 1)
        return [
            self[each]
            for each in (steps - stride, steps + stride)
            if min(FEWEST_STEPS, asked) <= each < asked
        ]

    def _probed(self, steps: int) -> Level:
        asked = self.asked
        records = tuple(self.measure.probe(subject, steps) for subject in self.subjects)
        places = (np.arange(steps) + 0.5) / steps
        known = (np.arange(asked.steps) + 0.5) / asked.steps
        growth = np.exp(np.interp(places, known, np.log(asked.errors.growth)))
        costs = replace(asked.costs, steps=steps, rest=asked.costs.rest * steps / asked.steps)
        plain = self.measure.trial(fewer_steps(self.measure.setting, steps), self.subjects[0])
        base = max(plain.latent_error, _LEAST_ERROR)
        offset = plain.fidelity["psnr"] + 20 * math.log10(base)
        return Level(Errors(records, asked.errors.guidance, growth), costs, base, offset)


def ladder(steps: int) -> list[int]:
    """Fewer steps that are worth a look, most first."""
    found = {round(share * steps) for share in SHARES}
    return sorted((each for each in found if FEWEST_STEPS <= each < steps), reverse=True)
