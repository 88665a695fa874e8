"""Measured seconds per kind of call, and what a draft takes by them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sightline.video.search.drafts import Draft
from sightline.video.search.record import ProbeRecord
from sightline.video.sites import BRANCHES, OUTPUT, Kind, Site


@dataclass(frozen=True)
class Costs:
    """Seconds of an exact generation's denoising loop, taken apart.

    Attributes:
        steps: of the exact generation.
        rest: outside of the model's calls, in all.
        call: one call, by branch.
        blocks, attention: the share of each block, and of its self-attention, in a call.
    """

    steps: int
    rest: float
    call: Mapping[str, float]
    blocks: tuple[float, ...]
    attention: tuple[float, ...]

    @classmethod
    def of(cls, record: ProbeRecord, exact: float) -> Costs:
        """Of a probe. Its instruments slow it down, so only its shares are used, of the plain run's seconds.

        Args:
            exact: seconds of the plain exact generation's denoising loop.
        """
        rest = float(record.rest_seconds[0])
        scale = exact / (rest + record.steps * float(record.call_seconds.sum()))
        call = dict(zip(BRANCHES, (float(each) * scale for each in record.call_seconds), strict=False))
        blocks, attention = _floats(record.block_seconds), _floats(record.attention_seconds)
        return cls(record.steps, rest * scale, call, blocks, attention)

    def exact(self) -> float:
        return self.rest + self.steps * sum(self.call.values())

    def saved(self, site: Site) -> float:
        """The share of a call that is saved where a site is not computed."""
        if site.kind is Kind.OUTPUT:
            return 1.0
        shares = self.blocks if site.kind is Kind.BLOCKS else self.attention
        return sum(shares[site.start : site.stop])

    def of_draft(self, draft: Draft) -> float:
        """Seconds that a draft's denoising loop is expected to take."""
        saved = self.saved(Site.parse(draft.site))
        total = self.rest
        for branch, count in draft.calls().items():
            if branch in self.call:
                total += self.call[branch] * (count + (self.steps - count) * (1 - saved))
        return total

    def most(self, seconds: float, site: Site = OUTPUT) -> int:
        """How many steps both branches can compute in so many seconds; 0 or less where it cannot be done."""
        pair, saved = sum(self.call.values()), self.saved(site)
        if not pair * saved:
            return 0
        return int((seconds - self.rest - self.steps * pair * (1 - saved)) / (pair * saved) + 1e-9)


def _floats(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(each) for each in values)
