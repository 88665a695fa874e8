"""How a step's error arrives at the end: measured by a few generations in which one step alone is not computed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sightline.video.builders import masked
from sightline.video.plan import Plan
from sightline.video.search.errors import Errors
from sightline.video.search.measure import Measure, Subject
from sightline.video.search.proposals import site_moves
from sightline.video.setting import Setting
from sightline.video.sites import OUTPUT, Site

PLACES = (0.05, 0.12, 0.22, 0.4, 0.65, 0.88)  # of the way through the steps; early errors grow most
_SMALLEST, _LARGEST = 1e-3, 1e3


def measured_growth(measure: Measure, subject: Subject, errors: Errors) -> tuple[Errors, float]:
    """Errors with the growth measured; between the measured steps it goes geometrically. And what the decoder makes of
    errors: PSNR in dB plus 20 log10 of the latent error, the median.

    A step that reuses the output of the one before makes an error that the probe knows (`Errors.rms`). What that makes
    of the final latents, over that times the solver's step, is the step's growth.
    """
    places, grown, offsets = [], [], []
    own = errors.records[:1]
    alone = Errors(own, errors.guidance, np.ones(errors.steps))
    for step in skipped_steps(errors.steps):
        expected = alone.contribution(step, {branch: {(branch, step - 1): 1.0} for branch in errors.branches})
        found = measure.trial(one_skip(measure.setting, OUTPUT, step, errors.branches), subject)
        if found.latent_error > 0:
            offsets.append(found.fidelity["psnr"] + 20 * math.log10(found.latent_error))
        if expected > 0 and found.latent_error > 0:
            places.append(step)
            grown.append(float(np.clip(found.latent_error / expected, _SMALLEST, _LARGEST)))
    offset = float(np.median(offsets)) if offsets else 0.0
    if not places:
        return errors, offset
    growth = np.exp(np.interp(np.arange(errors.steps), places, np.log(grown)))
    return replace(errors, growth=growth), offset


def measured_gains(
    measure: Measure, subject: Subject, errors: Errors, sites: Sequence[Site]
) -> dict[str, float]:
    """By site, how much of a change of what it keeps arrives in the velocity: from one generation each, in which the
    middle step alone reuses it."""
    if errors.steps < 2:
        return {}
    step = max(errors.steps // 2, 1)
    gains = {}
    for site in sites:
        expected = errors.weight(step) * float(site_moves(errors, site)[0, step])
        found = measure.trial(one_skip(measure.setting, site, step, errors.branches), subject, decode=False)
        if expected > 0 and np.isfinite(expected):
            gains[str(site)] = found.latent_error / expected
    return gains


def skipped_steps(steps: int) -> list[int]:
    """The steps that are skipped alone, never the first."""
    return (
        sorted({min(max(round(place * (steps - 1)), 1), steps - 1) for place in PLACES}) if steps > 1 else []
    )


def one_skip(setting: Setting, site: Site, step: int, branches: Sequence[str]) -> Plan:
    """Everything is computed but a site in one step."""
    computed = [each for each in range(setting.steps) if each != step]
    return masked(setting, site, computed, branches=branches, name=f"without step {step}")
