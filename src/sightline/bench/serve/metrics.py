"""The figures of a load, under the names that `vllm bench serve` writes.

TTFT  time to first token: from sending a request to its first chunk with text
TPOT  time per output token after the first: (latency - TTFT) / (tokens - 1), of requests of two tokens and more
ITL   inter-token latency: between two chunks with text, of all requests together
E2EL  end-to-end latency: from sending a request to its last chunk
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from sightline.bench.serve.load import Measured
from sightline.bench.serve.outcome import Outcome
from sightline.errors import UsageError

METRICS = ("ttft", "tpot", "itl", "e2el")
STAGES = ("fetch", "decode", "preprocess", "queue", "encode", "prefill")


def read_goodput(texts: Sequence[str]) -> dict[str, float]:
    """Milliseconds by metric, of "ttft:500 tpot:50"; raises UsageError."""
    limits = {}
    for word in (word for text in texts for word in re.split(r"[\s,]+", text) if word):
        name, _, value = word.partition(":")
        if name not in ("ttft", "tpot", "e2el") or not re.fullmatch(r"\d+(\.\d+)?", value):
            raise UsageError(f"--goodput is {word!r}; write ttft:MS, tpot:MS or e2el:MS, such as ttft:500")
        limits[name] = float(value)
    return limits


def summarize(
    measured: Measured, *, percentiles: Sequence[float] = (99.0,), goodput: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """All figures and, request by request, what they were made of (failed ones as zeros)."""
    outcomes = measured.outcomes
    good = [one for one in outcomes if one.ok]
    seconds = measured.seconds or math.inf
    inputs, outputs = sum(one.prompt_tokens for one in good), sum(one.tokens for one in good)
    tokens_peak, open_peak = _peaks(good)
    result: dict[str, Any] = {
        "duration": measured.seconds,
        "completed": len(good),
        "failed": len(outcomes) - len(good),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": len(good) / seconds,
        "request_goodput": _good_enough(good, goodput) / seconds if goodput else None,
        "output_throughput": outputs / seconds,
        "total_token_throughput": (inputs + outputs) / seconds,
        # A run that ends within a second counts less in it than its mean.
        "max_output_tokens_per_s": max(tokens_peak, outputs / seconds),
        "max_concurrent_requests": open_peak,
    }
    for name, values in _values(good).items():
        result |= statistics(name, values, percentiles)
    result |= {
        "input_lens": [one.prompt_tokens if one.ok else 0 for one in outcomes],
        "output_lens": [one.tokens if one.ok else 0 for one in outcomes],
        "ttfts": [one.ttft for one in outcomes],
        "itls": [one.itls for one in outcomes],
        "latencies": [one.latency for one in outcomes],
        "start_times": [one.start for one in outcomes],
        "generated_texts": [one.text for one in outcomes],
        "errors": [one.error for one in outcomes],
    }
    return result | _ours(measured, good)


def statistics(name: str, seconds: Sequence[float], percentiles: Sequence[float]) -> dict[str, float]:
    """Mean, median, deviation and percentiles (linear, as numpy's) in milliseconds; zeros where there is nothing."""
    import numpy as np

    values = np.asarray(seconds or [0.0]) * 1e3
    found = {"mean": np.mean(values), "median": np.median(values), "std": np.std(values)}
    found |= {f"p{word(one)}": np.percentile(values, one) for one in percentiles}
    return {f"{kind}_{name}_ms": float(value) for kind, value in found.items()}


def word(percentile: float) -> str:
    return f"{percentile:g}"


def _values(good: Sequence[Outcome]) -> dict[str, list[float]]:
    return {
        "ttft": [one.ttft for one in good],
        "tpot": [one.tpot for one in good if one.tokens > 1],
        "itl": [gap for one in good for gap in one.itls],
        "e2el": [one.latency for one in good],
    }


def _good_enough(good: Sequence[Outcome], limits: Mapping[str, float]) -> int:
    def holds(one: Outcome) -> bool:
        found = {"ttft": one.ttft, "tpot": one.tpot, "e2el": one.latency}
        return all(found[name] * 1e3 <= limit for name, limit in limits.items())

    return sum(map(holds, good))


def _peaks(good: Sequence[Outcome]) -> tuple[float, int]:
    """Most output tokens in one of the seconds from the first start on, and most requests open at a time.

    A chunk stands for the request's tokens over its chunks.
    """
    if not good:
        return 0.0, 0
    first = min(one.start for one in good)
    tokens: dict[int, float] = {}
    changes: list[tuple[float, int]] = []
    for one in good:
        moment = one.start - first + one.ttft
        weight = one.tokens / max(one.chunks, 1)
        for gap in (0.0, *one.itls):
            moment += gap
            tokens[int(moment)] = tokens.get(int(moment), 0.0) + weight
        changes += [(one.start, 1), (one.start + one.latency, -1)]
    # At the same moment one ends before another begins.
    opened = accumulate(change for _, change in sorted(changes))
    return max(tokens.values()), max(opened)


def _ours(measured: Measured, good: Sequence[Outcome]) -> dict[str, Any]:
    """What vLLM's benchmark does not tell."""
    import numpy as np

    outcomes = measured.outcomes
    lags = [one.lag * 1e3 for one in outcomes]
    counted = any(one.output_tokens is not None for one in good)
    return {
        "unanswered": measured.unanswered,
        "failures": _failures(outcomes),
        "stages": _stages(good),
        "not_streamed": sum(not one.streamed for one in good),
        "input_tokens_from": "server" if any(one.input_tokens is not None for one in good) else "words",
        "output_tokens_from": "server" if counted else "chunks",
        "p99_send_lag_ms": float(np.percentile(lags, 99)) if lags else 0.0,
    }


def _failures(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """By kind, how many and what the first one was told."""
    found: dict[str, dict[str, Any]] = {}
    for one in outcomes:
        if not one.ok:
            found.setdefault(one.kind, {"count": 0, "example": one.error})["count"] += 1
    return found


def _stages(good: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Milliseconds of the stages that the server tells in its last chunk, as `encode_ms` or, in seconds, `encode`."""
    found = {}
    for name in STAGES:
        values = [value for one in good if (value := _stage(one.timings or {}, name)) is not None]
        if values:
            numbers = statistics(name, values, (99.0,))
            found[name] = {kind: numbers[f"{kind}_{name}_ms"] for kind in ("mean", "median", "p99")}
    return found


def _stage(timings: Mapping[str, Any], name: str) -> float | None:
    for key, scale in ((f"{name}_ms", 1e-3), (name, 1.0)):
        value = timings.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return value * scale
    return None
