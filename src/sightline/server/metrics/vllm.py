"""The engine's statistics under vLLM's names, so that dashboards and load balancers made for it read them.

Names, labels and meanings are those of vLLM 0.3x (`vllm/v1/metrics/loggers.py`); docs/metrics.md lists each. Nothing is
computed until somebody asks: a scrape copies the engine's totals and writes them down.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily, Metric

from sightline.engine.llm import LLM
from sightline.engine.stats import Stats
from sightline.server.metrics.families import Families

REASONS = ("stop", "length", "abort", "error")
# (name, text, histogram of the totals)
_HISTOGRAMS = (
    (
        "time_to_first_token_seconds",
        "Seconds from a request's arrival to its first token.",
        "time_to_first_token",
    ),
    (
        "inter_token_latency_seconds",
        "Seconds between two steps that brought an answer tokens.",
        "inter_token",
    ),
    (
        "request_time_per_output_token_seconds",
        "Seconds a token of a request, the first one aside.",
        "time_per_output_token",
    ),
    ("e2e_request_latency_seconds", "Seconds from a request's arrival to its end.", "total"),
    ("request_queue_time_seconds", "Seconds that a prepared request waited.", "queue"),
    ("request_inference_time_seconds", "Seconds from a request's first step to its end.", "inference"),
    (
        "request_prefill_time_seconds",
        "Seconds from a request's first step to its first token.",
        "to_first_token",
    ),
    ("request_decode_time_seconds", "Seconds from a request's first token to its end.", "decode_time"),
    ("request_prompt_tokens", "Tokens of a request's prompt.", "prompt_tokens"),
    ("request_generation_tokens", "Tokens of an answer.", "generation_tokens"),
    ("request_max_num_generation_tokens", "Tokens of a request's longest answer.", "longest_answer"),
    ("request_prefill_kv_computed_tokens", "Tokens of a prompt that no cache held.", "computed_tokens"),
    ("request_params_n", "Answers that a request asked for.", "n"),
    ("request_params_max_tokens", "Tokens that an answer might have had.", "max_tokens"),
    ("request_num_preemptions", "How often a request lost its blocks.", "preemptions"),
    ("iteration_tokens_total", "Tokens that a step computed.", "step_tokens"),
)


class VllmCollector:
    """Registers with a `prometheus_client.CollectorRegistry`.

    Args:
        model: the label model_name.
        turned_away: requests that the HTTP server itself turned away, by reason; the engine's own are added.
    """

    def __init__(self, llm: LLM, model: str, turned_away: Callable[[], dict[str, int]] = dict) -> None:
        self._llm = llm
        self._model = model
        self._turned_away = turned_away
        self._families = Families(model_name=model, engine="0")

    def collect(self) -> Iterator[Metric]:
        stats = self._llm.engine.stats()
        yield from self._gauges(stats)
        yield from self._counters(stats)
        for name, text, source in _HISTOGRAMS:
            yield self._families.histogram(f"vllm:{name}", text, stats.totals.histograms[source])

    def _gauges(self, stats: Stats) -> Iterator[Metric]:
        gauge = self._families.gauge
        yield gauge("vllm:num_requests_running", "Answers that are computed now.", stats.running)
        waiting = stats.waiting + stats.preparing
        yield gauge("vllm:num_requests_waiting", "Requests that wait to be computed.", waiting)
        yield self._families.gauges(
            "vllm:num_requests_waiting_by_reason",
            "Those that wait for room (capacity), and those whose prompt is being prepared (deferred).",
            "reason",
            {"capacity": stats.waiting, "deferred": stats.preparing},
        )
        usage = stats.blocks_used / max(1, stats.blocks_total)
        yield gauge("vllm:kv_cache_usage_perc", "Share of the KV cache that is in use; 1 is all.", usage)
        yield self._cache_config(stats)
        yield from self._adapters(stats)

    def _cache_config(self, stats: Stats) -> Metric:
        settings = self._llm.settings
        labels: dict[str, Any] = {
            "block_size": settings.block_size,
            "num_gpu_blocks": stats.blocks_total,
            "num_cpu_blocks": None,
            "enable_prefix_caching": settings.enable_prefix_caching,
            "gpu_memory_utilization": settings.gpu_memory_utilization,
            "cache_dtype": "auto",
            "engine": "0",
        }
        family = GaugeMetricFamily("vllm:cache_config_info", "The KV cache.", labels=list(labels))
        family.add_metric([str(value) for value in labels.values()], 1)
        return family

    def _adapters(self, stats: Stats) -> Iterator[Metric]:
        """Who asks for which adapters; its value is the time, as load balancers expect."""
        loaded = self._llm.engine.adapters
        if not loaded:
            return
        labels = {
            "max_lora": str(self._llm.settings.max_adapters),
            "waiting_lora_adapters": ",".join(sorted(stats.waiting_adapters)),
            "running_lora_adapters": ",".join(sorted(stats.running_adapters)),
        }
        family = GaugeMetricFamily(
            "vllm:lora_requests_info", "Adapters that are asked for.", labels=list(labels)
        )
        family.add_metric(list(labels.values()), time.time())
        yield family

    def _counters(self, stats: Stats) -> Iterator[Metric]:
        counter, totals = self._families.counter, stats.totals
        yield counter("vllm:prompt_tokens", "Tokens of prompts.", totals.prompt_tokens)
        yield counter("vllm:prompt_tokens_cached", "Those that a cache held.", totals.cached_tokens)
        yield counter("vllm:generation_tokens", "Tokens of answers.", totals.generation_tokens)
        yield self._families.counters(
            "vllm:request_success",
            "Answers by what ended them.",
            "finished_reason",
            {reason: totals.finished.get(reason, 0) for reason in REASONS},
        )
        yield counter("vllm:num_preemptions", "Answers that lost their blocks.", totals.preemptions)
        for name, use, what in (
            ("prefix_cache", stats.prefix_cache, "tokens of prompts"),
            ("mm_cache", stats.image_cache, "preprocessed images and videos"),
        ):
            yield counter(f"vllm:{name}_queries", f"How many {what} were looked for.", use.queries)
            yield counter(f"vllm:{name}_hits", f"How many {what} were found.", use.hits)
        if self._llm.settings.num_speculative_tokens:
            yield counter("vllm:spec_decode_num_drafts", "Guesses of an answer's next tokens.", totals.drafts)
            yield counter("vllm:spec_decode_num_draft_tokens", "Tokens that were guessed.", totals.drafted)
            yield counter("vllm:spec_decode_num_accepted_tokens", "Those that were right.", totals.accepted)
        yield Families(model_name=self._model).counters(
            "vllm:admission_rejections",
            "Requests that were turned away because too many wait.",
            "reason",
            {**self._turned_away(), "engine_full": stats.turned_away},
        )
