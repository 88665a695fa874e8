"""When requests are sent."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sightline.bench.serve.arrivals import Arrivals
from sightline.errors import UsageError


def times(arrivals: Arrivals, count: int, seed: int = 7) -> list[float]:
    return arrivals.times(count, np.random.default_rng(seed))


def test_a_poisson_process_of_the_wanted_rate() -> None:
    found = np.array(times(Arrivals(rate=4.0), 4000))
    gaps = np.diff(found, prepend=0.0)
    assert found[-1] == pytest.approx(1000)  # as vLLM scales it
    assert gaps.mean() == pytest.approx(0.25)
    # Of an exponential distribution the deviation is the mean, and a share of 1/e exceeds it.
    assert gaps.std() == pytest.approx(0.25, rel=0.05)
    assert (gaps > 0.25).mean() == pytest.approx(math.exp(-1), abs=0.03)
    assert times(Arrivals(rate=4.0), 50) == times(Arrivals(rate=4.0), 50)
    assert times(Arrivals(rate=4.0), 50) != times(Arrivals(rate=4.0), 50, seed=8)


@pytest.mark.parametrize(("burstiness", "spread"), [(0.25, 2.0), (4.0, 0.5), (10000.0, 0.01)])
def test_burstiness_is_the_gaps_spread(burstiness: float, spread: float) -> None:
    gaps = np.diff(times(Arrivals(rate=2.0, burstiness=burstiness), 4000), prepend=0.0)
    assert gaps.mean() == pytest.approx(0.5)
    assert gaps.std() / gaps.mean() == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize("ramp", ["linear", "exponential"])
def test_a_climbing_rate(ramp: str) -> None:
    gaps = np.diff(times(Arrivals(ramp=ramp, ramp_from=1.0, ramp_to=16.0), 4000), prepend=0.0)
    assert 1 / gaps[:200].mean() == pytest.approx(1.2, rel=0.2)
    assert 1 / gaps[-200:].mean() == pytest.approx(15.5, rel=0.2)
    middle = 1 / gaps[1900:2100].mean()
    assert middle == pytest.approx(8.5 if ramp == "linear" else 4.0, rel=0.2)


def test_all_at_once() -> None:
    assert times(Arrivals(), 3) == [0.0, 0.0, 0.0]
    assert times(Arrivals(rate=1.0), 0) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rate": 0.0}, "--request-rate"),
        ({"burstiness": 0.0}, "--burstiness"),
        ({"ramp": "cubic", "ramp_from": 1.0, "ramp_to": 2.0}, "--ramp-up-strategy"),
        ({"ramp": "linear", "ramp_from": 0.0, "ramp_to": 2.0}, "--ramp-up-start-rps"),
        ({"ramp": "linear", "ramp_from": 1.0, "ramp_to": 2.0, "rate": 3.0}, "leave --request-rate out"),
    ],
)
def test_patterns_that_cannot_be(settings: dict[str, float], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Arrivals(**settings)  # type: ignore[arg-type]
