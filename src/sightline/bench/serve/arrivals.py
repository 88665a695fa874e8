"""When requests are sent: all at once, or as a Poisson process whose rate may climb."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sightline.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

STRATEGIES = ("linear", "exponential")


@dataclass(frozen=True)
class Arrivals:
    """The pattern of arrivals.

    Attributes:
        rate: requests a second; infinite sends as many as may be open.
        burstiness: shape of the gamma distribution of the gaps; 1 is a Poisson process, less comes in bursts, more
            evenly.
        ramp: "linear" or "exponential" climb from `ramp_from` to `ramp_to` requests a second over the run, in place
            of `rate`.
    """

    rate: float = math.inf
    burstiness: float = 1.0
    ramp: str | None = None
    ramp_from: float = 0.0
    ramp_to: float = 0.0

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise UsageError(f"--request-rate must be above 0 or inf, not {self.rate}")
        if not 0 < self.burstiness < math.inf:
            raise UsageError(f"--burstiness must be above 0, not {self.burstiness}")
        if self.ramp is None:
            return
        if self.ramp not in STRATEGIES:
            raise UsageError(f"--ramp-up-strategy is {self.ramp!r}; write {' or '.join(STRATEGIES)}")
        if not (0 < self.ramp_from < math.inf and 0 < self.ramp_to < math.inf):
            raise UsageError("--ramp-up-strategy needs --ramp-up-start-rps and --ramp-up-end-rps above 0")
        if self.rate != math.inf:
            raise UsageError("--ramp-up-strategy sets the request rate; leave --request-rate out")

    @property
    def immediate(self) -> bool:
        return self.ramp is None and self.rate == math.inf

    def times(self, count: int, random: np.random.Generator) -> list[float]:
        """Seconds from the start to each of `count` requests, the first one after a gap like any other.

        As in vLLM's benchmark the gaps are drawn and then scaled so that the last request comes when the rate says
        it should: a short run, too, has the rate it was asked for. A climbing rate is not scaled.
        """
        import numpy as np

        if self.immediate:
            return [0.0] * count
        rates = np.array([self._rate_at(number / max(count, 1)) for number in range(count)])
        gaps = random.gamma(self.burstiness, 1.0 / (rates * self.burstiness))
        times = np.cumsum(gaps)
        if self.ramp is None and count:
            times *= count / self.rate / times[-1]
        return [float(time) for time in times]

    def _rate_at(self, share: float) -> float:
        if self.ramp == "linear":
            return self.ramp_from + (self.ramp_to - self.ramp_from) * share
        if self.ramp == "exponential":
            return self.ramp_from * (self.ramp_to / self.ramp_from) ** share
        return self.rate
