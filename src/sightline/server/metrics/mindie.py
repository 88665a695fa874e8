"""The engine's statistics under MindIE's names: no prefix, and the one label model_name.

MindIE's bounds are among those of our histograms, so that its dashboards' queries hold.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from prometheus_client.core import Metric

from sightline.engine.llm import LLM
from sightline.engine.stats import Stats
from sightline.server.metrics.families import Families

_WELL = ("stop", "length")
_WINDOW = 5.0  # seconds that an average throughput covers at least
_HISTOGRAMS = (
    ("time_to_first_token_seconds", "Seconds to the first token.", "time_to_first_token"),
    ("time_per_output_token_seconds", "Seconds between two tokens.", "inter_token"),
    ("e2e_request_latency_seconds", "Seconds from a request's arrival to its end.", "total"),
    ("request_prompt_tokens", "Tokens of a request's prompt.", "prompt_tokens"),
    ("request_generation_tokens", "Tokens of an answer.", "generation_tokens"),
)


class MindieCollector:
    """Registers with a `prometheus_client.CollectorRegistry`."""

    def __init__(self, llm: LLM, model: str) -> None:
        self._llm = llm
        self._families = Families(model_name=model)
        self._rates = Rates()

    def collect(self) -> Iterator[Metric]:
        stats = self._llm.engine.stats()
        yield from self._requests(stats)
        yield from self._caches(stats)
        for name, text, source in _HISTOGRAMS:
            yield self._families.histogram(name, text, stats.totals.histograms[source])

    def _requests(self, stats: Stats) -> Iterator[Metric]:
        counter, gauge, totals = self._families.counter, self._families.gauge, stats.totals
        failed = totals.refused + totals.finished.get("error", 0)
        yield counter("request_received", "Requests that were taken.", stats.received)
        well = sum(totals.finished.get(reason, 0) for reason in _WELL)
        yield counter("request_success", "Answers that ended well.", well)
        yield counter("request_failed", "Requests that failed.", failed)
        yield gauge("failed_request_perc", "Share of requests that failed.", failed / max(1, stats.received))
        yield gauge("num_requests_running", "Answers that are computed now.", stats.running)
        waiting = stats.waiting + stats.preparing
        yield gauge("num_requests_waiting", "Requests that wait to be computed.", waiting)
        yield gauge("num_requests_swapped", "Requests whose keys and values lie elsewhere; never any.", 0)
        yield counter("num_preemptions", "Answers that lost their blocks.", totals.preemptions)
        yield counter("prompt_tokens", "Tokens of prompts.", totals.prompt_tokens)
        yield counter("generation_tokens", "Tokens of answers.", totals.generation_tokens)
        prompt, generation = self._rates.of(totals.prompt_tokens, totals.generation_tokens)
        yield gauge("avg_prompt_throughput_toks_per_s", "Tokens of prompts a second.", prompt)
        yield gauge("avg_generation_throughput_toks_per_s", "Tokens of answers a second.", generation)

    def _caches(self, stats: Stats) -> Iterator[Metric]:
        gauge, prefix = self._families.gauge, stats.prefix_cache
        usage = stats.blocks_used / max(1, stats.blocks_total)
        yield gauge("npu_cache_usage_perc", "Share of the KV cache that is in use; 1 is all.", usage)
        yield gauge("cpu_cache_usage_perc", "The same of a KV cache to swap to; there is none.", 0)
        yield gauge(
            "npu_prefix_cache_hit_rate", "Share of found prompt tokens.", prefix.hits / max(1, prefix.queries)
        )
        yield gauge("all_radix_match_num", "Tokens of prompts that were looked for.", prefix.queries)
        yield gauge("npu_radix_match_hit_num", "Tokens of prompts that were found.", prefix.hits)


class Rates:
    """Tokens a second between two looks that are at least a few seconds apart; 0 at the first look."""

    def __init__(self, window: float = _WINDOW) -> None:
        self._window = window
        self._lock = threading.Lock()
        self._looks: list[tuple[float, int, int]] = []

    def of(self, prompt: int, generation: int) -> tuple[float, float]:
        now = time.monotonic()
        with self._lock:
            # An older look is let go once the one after it is old enough: several may look every few seconds.
            if len(self._looks) == 2 and now - self._looks[1][0] >= self._window:
                self._looks.pop(0)
            if len(self._looks) < 2:
                self._looks.append((now, prompt, generation))
            then, prompts, generations = self._looks[0]
        seconds = now - then
        if seconds <= 0:
            return 0.0, 0.0
        return (prompt - prompts) / seconds, (generation - generations) / seconds
