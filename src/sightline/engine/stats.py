"""What the engine counts: gauges of the moment, totals since the start, and how long each stage took."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field, replace

from sightline.engine.outputs import RequestMetrics

STAGES = (
    *("fetch", "decode", "preprocess", "queue", "encode", "prefill", "decode_time"),
    *("time_to_first_token", "total"),
)
BOUNDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Upper ends of the histograms' buckets, in seconds."""


@dataclass
class Histogram:
    """Seconds, counted in buckets: `counts[i]` of them up to BOUNDS[i], the last above all."""

    count: int = 0
    sum: float = 0.0
    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))

    def add(self, seconds: float) -> None:
        self.count += 1
        self.sum += seconds
        self.counts[bisect_left(BOUNDS, seconds)] += 1

    def copy(self) -> Histogram:
        return replace(self, counts=list(self.counts))


@dataclass
class Totals:
    """Since the engine started. Only the engine's thread writes.

    Attributes:
        finished: requests' answers by finish_reason.
        drafted, accepted: tokens that speculation proposed, and those of them that were right.
        steps, step_seconds: computed steps and the time they took.
    """

    prompt_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    drafted: int = 0
    accepted: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    finished: dict[str, int] = field(default_factory=dict)
    stages: dict[str, Histogram] = field(default_factory=lambda: {name: Histogram() for name in STAGES})

    def add_answer(self, reason: str, tokens: int) -> None:
        self.finished[reason] = self.finished.get(reason, 0) + 1
        self.generation_tokens += tokens

    def add_request(self, prompt_tokens: int, metrics: RequestMetrics) -> None:
        self.prompt_tokens += prompt_tokens
        for name, histogram in self.stages.items():
            seconds = getattr(metrics, name)
            if seconds is not None:
                histogram.add(seconds)

    def copy(self) -> Totals:
        """As they are now, for other threads to read at leisure."""
        stages = {name: histogram.copy() for name, histogram in self.stages.items()}
        return replace(self, finished=dict(self.finished), stages=stages)


@dataclass(frozen=True)
class CacheUse:
    """Questions to a cache and those it could answer: tokens for the prefix cache, media for the others."""

    queries: int = 0
    hits: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Stats:
    """The engine at one moment. `preparing` requests have no tokens yet, `waiting` ones are ready to be computed."""

    preparing: int
    waiting: int
    running: int
    blocks_used: int
    blocks_total: int
    prefix_cache: CacheUse
    encoder_cache: CacheUse
    image_cache: CacheUse
    totals: Totals
