"""What is searched for, and how good what was measured is by that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sightline.errors import UsageError

SPEEDS = (1.3, 1.6, 2.0, 2.5, 3.0, 4.0)  # looked after whatever the goal

# How several prompts' figures become one: the worst of each.
_WORST = {
    "psnr": min,
    "psnr_worst": min,
    "ssim": min,
    "ssim_worst": min,
    "haarpsi": min,
    "haarpsi_worst": min,
    "temporal_error": max,
    "temporal_error_worst": max,
}


@dataclass(frozen=True)
class Goal:
    """Either a speed-up of the denoising loop, or a PSNR of the worst prompt in dB.

    Raises:
        UsageError: neither or both are given, or one makes no sense.
    """

    budget: float | None = None
    min_psnr: float | None = None

    def __post_init__(self) -> None:
        if (self.budget is None) == (self.min_psnr is None):
            raise UsageError(
                "give either --budget (2.0x: at least twice as fast) or --min-psnr (28: at least 28 dB)"
            )
        if self.budget is not None and not 1 < self.budget <= 100:
            raise UsageError(f"--budget must be a speed-up above 1x and at most 100x, not {self.budget:g}x")
        if self.min_psnr is not None and not 0 < self.min_psnr < 100:
            raise UsageError(f"--min-psnr must be between 0 and 100 dB, not {self.min_psnr:g}")

    @classmethod
    def read(cls, budget: str | None, min_psnr: float | None) -> Goal:
        """Of the command's options: `2.0x` or `2.0`.

        Raises:
            UsageError: it is no number.
        """
        if budget is None:
            return cls(None, min_psnr)
        try:
            return cls(float(budget.strip().lower().removesuffix("x")), min_psnr)
        except ValueError:
            raise UsageError(f"--budget must be a speed-up as 2.0x, not {budget!r}") from None

    def __str__(self) -> str:
        if self.budget is not None:
            return f"at least {self.budget:g} times as fast"
        return f"at least {self.min_psnr:g} dB in the worst prompt"

    def speeds(self) -> tuple[float, ...]:
        """The speed-ups for which drafts are made: over the whole range, and the goal's with a little more, for what
        is expected is not quite what is measured."""
        goal = set() if self.budget is None else {self.budget, 1 + 1.06 * (self.budget - 1)}
        return tuple(sorted({*SPEEDS, *goal}))

    def targets(self) -> tuple[Goal, ...]:
        """This one, and the speed-ups that a search looks after as well, so that it leaves a front."""
        far = [speed for speed in SPEEDS if self.budget is None or abs(math.log(speed / self.budget)) > 0.1]
        return (self, *(Goal(budget=speed) for speed in far))

    def reached(self, result: Result) -> bool:
        if self.budget is not None:
            return result.speed >= self.budget
        assert self.min_psnr is not None
        return result.psnr >= self.min_psnr

    def key(self, result: Result) -> tuple[float, float]:
        """Larger is better: first what reaches the goal, by what is left free; then what comes nearest to it."""
        if self.budget is not None:
            return (1.0, result.psnr) if self.reached(result) else (0.0, result.speed)
        return (1.0, result.speed) if self.reached(result) else (0.0, result.psnr)


@dataclass(frozen=True)
class Trial:
    """One generation with a plan, against the exact one of the same prompt and seed.

    Attributes:
        seconds, exact_seconds: of the denoising loops, run one after the other.
        total, exact_total: with text and decoding.
        latent_error: relative, of the final latents.
        fidelity: numbers by name (`video.fidelity`), empty where it was not decoded.
    """

    seconds: float
    exact_seconds: float
    total: float
    exact_total: float
    latent_error: float
    fidelity: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Result:
    """What a plan's trials on several prompts come to.

    Attributes:
        trials: how many.
        seconds, total: the exact run's median over the speed-up.
        speed: the median of exact seconds over its own, of its trials and of those of plans that make the same calls;
            `speed_total` with text and decoding.
        psnr, psnr_median: of the worst prompt, and the median, dB; NaN where nothing was decoded.
        latent_error: of the worst prompt.
        fidelity: every measure of the worst prompt by that measure; flicker the farthest from 1.
    """

    trials: int
    seconds: float
    total: float
    speed: float
    speed_total: float
    psnr: float
    psnr_median: float
    latent_error: float
    fidelity: Mapping[str, float]

    @classmethod
    def of(cls, trials: Sequence[Trial], alike: Sequence[Trial] = ()) -> Result:
        """Of a plan's trials, and for its speed those of plans that make the same calls (its own among them)."""
        timed = alike or trials
        speed = _median([each.exact_seconds / each.seconds for each in timed])
        speed_total = _median([each.exact_total / each.total for each in timed])
        psnrs = [each.fidelity.get("psnr", math.nan) for each in trials]
        known = all(each.fidelity for each in trials)
        fidelity: dict[str, float] = {}
        if known:
            for name, worst in _WORST.items():
                fidelity[name] = worst(each.fidelity[name] for each in trials)
            fidelity["flicker"] = max(
                (each.fidelity["flicker"] for each in trials), key=lambda value: abs(value - 1)
            )
        return cls(
            trials=len(trials),
            seconds=_median([each.exact_seconds for each in timed]) / speed,
            total=_median([each.exact_total for each in timed]) / speed_total,
            speed=speed,
            speed_total=speed_total,
            psnr=min(psnrs) if known else math.nan,
            psnr_median=_median(psnrs) if known else math.nan,
            latent_error=max(each.latent_error for each in trials),
            fidelity=fidelity,
        )

    def to_json(self) -> dict[str, Any]:
        data = asdict(self)
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in data.items()
        }


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
