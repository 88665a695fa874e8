"""How wrong a step is that is not computed, and how wrong the video gets by it: from probes, without generating.

For a skipped step j the guided velocity is off by `e_j = sum(gamma_b * (v_b - predicted_b))` over the branches b, where
gamma is the guidance scale g for `cond` and 1 - g for `uncond`: errors that both branches share cancel but for a g-th.
The solver adds the velocity times its step in sigma, and the rest of the generation makes more or less of that. So the
step contributes

    growth_j * |sigma_j - sigma_j+1| * rms(e_j) / rms(final latents)

to the relative error of the final latents. That is what schedules are made by; a whole plan's predicted error is the
length of the sum of its steps' errors as vectors, which the products give as well. `growth` is measured: generations
that skip one step alone say how much of it arrives.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from sightline.video.search.record import ProbeRecord
from sightline.video.sites import BRANCHES

Vector = tuple[str, int]  # branch and step
Weights = dict[Vector, float]
Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Errors:
    """The errors of predictions, over all probes.

    Attributes:
        records: one a prompt and seed.
        guidance: its scale.
        growth: how much of a step's error arrives at the end, [S].
    """

    records: tuple[ProbeRecord, ...]
    guidance: float
    growth: np.ndarray
    _tables: np.ndarray = field(init=False, repr=False)
    _mean: np.ndarray = field(init=False, repr=False)
    _whole: bool = field(init=False, repr=False)
    _places: dict[Vector, int] = field(init=False, repr=False)
    _known: dict[Hashable, Any] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        tables = []
        for record in self.records:
            size = record.outputs.shape[0] * record.outputs.shape[1]
            tables.append(record.outputs.reshape(size, size) / float(record.final[0]))
        size = self.records[0].steps
        places = {
            (branch, step): n * size + step for n, branch in enumerate(self.branches) for step in range(size)
        }
        object.__setattr__(self, "_tables", np.stack(tables))
        object.__setattr__(self, "_mean", np.mean(tables, axis=0))
        object.__setattr__(self, "_whole", not np.isnan(self._mean).any())
        object.__setattr__(self, "_places", places)
        object.__setattr__(self, "_known", {})

    @property
    def steps(self) -> int:
        return self.records[0].steps

    @property
    def branches(self) -> tuple[str, ...]:
        return BRANCHES[: self.records[0].outputs.shape[0]]

    @property
    def shares(self) -> dict[str, float]:
        """What each branch's velocity counts in the guided one."""
        if len(self.branches) == 1:
            return {"cond": 1.0}
        return {"cond": self.guidance, "uncond": 1.0 - self.guidance}

    def weight(self, step: int) -> float:
        """What a velocity's error of 1 in a step makes of the final latents."""
        sigmas = self.records[0].sigmas
        return float(self.growth[step] * abs(sigmas[step] - sigmas[step + 1]))

    def within(self, step: int, sources: Sequence[Vector]) -> bool:
        """Whether the probe knows how these are related."""
        if self._whole:
            return True
        places = [self._places[each] for each in sources]
        places += [self._places[branch, step] for branch in self.branches]
        return not bool(np.isnan(self._mean[np.ix_(places, places)]).any())

    def fit(
        self, target: Vector, sources: Sequence[Vector], start: Mapping[Vector, float], noise: float
    ) -> Weights:
        """Least squares over all probes, pulled to `start` by as much as the sources are uncertain.

        Args:
            target: what is to be predicted.
            sources: of which values.
            start: weights that need no fit, of some of the sources: the newest value, say.
            noise: how far a value is from the probe's, relatively, when a plan runs; it keeps the weights small.
        """
        places = np.array([self._places[each] for each in sources])
        given = np.array([start.get(each, 0.0) for each in sources])
        products = self._mean[places[:, None], places]
        missing = self._mean[self._places[target], places] - products @ given
        products.flat[:: len(places) + 1] += noise**2 * products.trace() / len(places)
        found = given + np.linalg.solve(products, missing)
        return dict(zip(sources, found.tolist(), strict=True))

    def rms(self, step: int, predictions: Mapping[str, Mapping[Vector, float]]) -> np.ndarray:
        """Root mean square of the guided velocity's error by probe, [P], relative to the final latents'.

        Args:
            predictions: weights by branch that is not computed.
        """
        sums: dict[Vector, float] = {}
        for branch, weights in predictions.items():
            share = self.shares[branch]
            sums[branch, step] = sums.get((branch, step), 0.0) + share
            for source, weight in weights.items():
                sums[source] = sums.get(source, 0.0) - share * weight
        places = np.array([self._places[each] for each in sums])
        values = np.array(list(sums.values()))
        squares = (self._tables[:, places[:, None], places] @ values) @ values
        return np.asarray(np.sqrt(np.maximum(squares, 0.0)))

    def contribution(self, step: int, predictions: Mapping[str, Mapping[Vector, float]]) -> float:
        """What a skipped step adds to the final latents' relative error; of the prompts the root mean square."""
        return self.weight(step) * float(np.sqrt(np.mean(self.rms(step, predictions) ** 2)))

    def together(self, predictions: Mapping[int, Mapping[str, Mapping[Vector, float]]]) -> float:
        """Relative error of the final latents of a whole plan, by the sum of its steps' errors as vectors; of the
        prompts the root mean square.

        Args:
            predictions: weights by step and branch. Values further apart than the probe's window count as unrelated.
        """
        sums: dict[Vector, float] = {}
        for step, branches in predictions.items():
            for branch, weights in branches.items():
                share = self.weight(step) * self.shares[branch]
                sums[branch, step] = sums.get((branch, step), 0.0) + share
                for source, weight in weights.items():
                    sums[source] = sums.get(source, 0.0) - share * weight
        if not sums:
            return 0.0
        places = np.array([self._places[each] for each in sums])
        values = np.array(list(sums.values()))
        tables = self._tables[:, places[:, None], places]
        squares = ((tables if self._whole else np.nan_to_num(tables)) @ values) @ values
        return float(np.sqrt(np.mean(np.maximum(squares, 0.0))))

    def once(self, key: Hashable, work: Callable[[], Kept]) -> Kept:
        """What `work` gives, kept by a key: schedules that differ little ask for the same steps again and again."""
        if key not in self._known:
            self._known[key] = work()
        kept: Kept = self._known[key]
        return kept
