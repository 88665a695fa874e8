"""What the engine counts: gauges of the moment, totals since the start, and how long each stage took."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from sightline.engine.outputs import RequestMetrics

if TYPE_CHECKING:
    from sightline.engine.scheduling.request import Request

# Upper ends of the histograms' buckets. Each holds every bound of the vLLM histogram that is made of it, so that what
# was written for those reads these too; and finer ones below where a small model's values lie.
_FINE = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
_HOURS = (40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)
LATENCY = (*_FINE, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, *_HOURS)
"""Seconds of a request or of one of its stages."""
FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
"""Seconds to the first token."""
BETWEEN_TOKENS = (
    *(0.001, 0.002, 0.003, 0.004, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3),
    *(0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
"""Seconds between two tokens of an answer."""
TOKENS = tuple(
    sorted(
        {mantissa * 10.0**power for power in range(6) for mantissa in (1, 2, 5)}
        | {16_000.0, 32_000.0, 64_000.0, 128_000.0}
    )
)
"""Tokens of a prompt or an answer, with MindIE's bounds beside vLLM's."""
STEP_TOKENS = (1.0, *(2.0**power for power in range(3, 15)))
FEW = (1.0, 2.0, 5.0, 10.0, 20.0)
SOME = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)

STAGES = ("fetch", "decode", "preprocess", "queue", "encode", "prefill", "decode_time", "total")
"""Fields of `RequestMetrics` that are counted when a request has ended well."""
VISION_STAGES = frozenset(("fetch", "decode", "encode"))
"""Those that a request without media does not have."""

_BOUNDS: Mapping[str, tuple[float, ...]] = {
    **dict.fromkeys(STAGES, LATENCY),
    "time_to_first_token": FIRST_TOKEN,
    "inter_token": BETWEEN_TOKENS,
    "time_per_output_token": BETWEEN_TOKENS,
    "to_first_token": LATENCY,
    "inference": LATENCY,
    "prompt_tokens": TOKENS,
    "computed_tokens": TOKENS,
    "generation_tokens": TOKENS,
    "longest_answer": TOKENS,
    "max_tokens": TOKENS,
    "step_tokens": STEP_TOKENS,
    "n": FEW,
    "preemptions": SOME,
}


@dataclass
class Histogram:
    """Values, counted in buckets: `counts[i]` of them up to bounds[i], the last above all."""

    bounds: tuple[float, ...] = LATENCY
    sum: float = 0.0
    counts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.counts = self.counts or [0] * (len(self.bounds) + 1)

    @property
    def count(self) -> int:
        return sum(self.counts)

    def add(self, value: float) -> None:
        self.sum += value
        self.counts[bisect_left(self.bounds, value)] += 1

    def copy(self) -> Histogram:
        return replace(self, counts=list(self.counts))


def _histograms() -> dict[str, Histogram]:
    return {name: Histogram(bounds) for name, bounds in _BOUNDS.items()}


@dataclass
class Totals:
    """Since the engine started. Only the engine's thread writes.

    Attributes:
        prompt_tokens, cached_tokens, vision_tokens: of prompts that have brought a first token: all of them, those
            found in the cache, and those that stand for images and videos.
        generation_tokens: as they are made, those of answers that fail later included.
        drafts, drafted, accepted: how often speculation proposed, the tokens it proposed, and those that were right.
        steps, step_seconds: computed steps and the time they took.
        refused: requests that could not be prepared.
        finished: requests' answers by finish_reason.
        histograms: by the names of `STAGES` and, of requests that ended well: "to_first_token" (prefill with
            encode), "inference" (that and decode), "time_per_output_token", "prompt_tokens", "computed_tokens" (of
            the prompt, not cached), "generation_tokens" (of each answer), "longest_answer", "max_tokens", "n",
            "preemptions"; as they happen "time_to_first_token", "inter_token" and "step_tokens".
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    vision_tokens: int = 0
    generation_tokens: int = 0
    preemptions: int = 0
    drafts: int = 0
    drafted: int = 0
    accepted: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    refused: int = 0
    finished: dict[str, int] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=_histograms)

    def add_step(self, tokens: int, seconds: float) -> None:
        self.steps += 1
        self.step_seconds += seconds
        self.histograms["step_tokens"].add(tokens)

    def add_prompt(self, request: Request, seconds: float) -> None:
        """A request has its first token, `seconds` after it was given."""
        self.prompt_tokens += len(request.prompt)
        self.cached_tokens += request.cached_tokens
        self.vision_tokens += sum(medium.tokens for medium in request.media)
        self.histograms["time_to_first_token"].add(seconds)

    def add_answer(self, reason: str) -> None:
        self.finished[reason] = self.finished.get(reason, 0) + 1

    def add_request(self, request: Request, metrics: RequestMetrics) -> None:
        """A request has ended well: the latencies of others would tell of their clients' patience."""
        histograms = self.histograms
        for name in STAGES:
            if request.media or name not in VISION_STAGES:
                histograms[name].add(getattr(metrics, name))
        histograms["to_first_token"].add(metrics.encode + metrics.prefill)
        histograms["inference"].add(metrics.encode + metrics.prefill + metrics.decode_time)
        histograms["prompt_tokens"].add(len(request.prompt))
        histograms["computed_tokens"].add(len(request.prompt) - request.cached_tokens)
        lengths = [len(sequence.answer.output.token_ids) for sequence in request.sequences]
        for length in lengths:
            histograms["generation_tokens"].add(length)
        histograms["longest_answer"].add(max(lengths))
        if max(lengths) > 1:
            histograms["time_per_output_token"].add(metrics.decode_time / (max(lengths) - 1))
        histograms["max_tokens"].add(request.sequences[0].limit)
        histograms["n"].add(len(request.sequences))
        histograms["preemptions"].add(sum(sequence.preemptions for sequence in request.sequences))

    def copy(self) -> Totals:
        """As they are now, for other threads to read at leisure."""
        histograms = {name: histogram.copy() for name, histogram in self.histograms.items()}
        return replace(self, finished=dict(self.finished), histograms=histograms)


@dataclass(frozen=True)
class CacheUse:
    """Questions to a cache and those it could answer: tokens for the prefix cache, media for the others."""

    queries: int = 0
    hits: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Stats:
    """The engine at one moment.

    Attributes:
        preparing: requests that have no tokens yet; waiting, running: answers that are ready to be computed, and those
            that are computed now.
        waiting_adapters, running_adapters: which adapters these ask for.
        received, turned_away: requests that were taken since the start, and those that found the engine full.
    """

    preparing: int
    waiting: int
    running: int
    blocks_used: int
    blocks_total: int
    prefix_cache: CacheUse
    encoder_cache: CacheUse
    image_cache: CacheUse
    totals: Totals
    waiting_adapters: frozenset[str] = frozenset()
    running_adapters: frozenset[str] = frozenset()
    received: int = 0
    turned_away: int = 0
