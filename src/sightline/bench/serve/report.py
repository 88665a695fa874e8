"""A load's figures as text, in the form of `vllm bench serve`, and as the JSON it writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sightline.bench.serve.metrics import METRICS, word

_WIDTH = 50
_TITLES = {
    "ttft": ("Time to First Token", "TTFT"),
    "tpot": ("Time per Output Token (excl. 1st token)", "TPOT"),
    "itl": ("Inter-token Latency", "ITL"),
    "e2el": ("End-to-end Latency", "E2EL"),
}
# What only --save-detailed writes: it grows with the requests.
DETAILS = (
    *("input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times"),
    *("generated_texts", "errors"),
)
_LATE = 10.0  # milliseconds


def block(
    result: Mapping[str, Any], *, metrics: Sequence[str] = METRICS, percentiles: Sequence[float] = (99.0,)
) -> str:
    """The printed block of one load."""
    lines = [" Serving Benchmark Result ".center(_WIDTH, "=")]
    lines += [_line(name, value) for name, value in _head(result)]
    for name in metrics:
        title, short = _TITLES[name]
        lines.append(title.center(_WIDTH, "-"))
        for kind in ("mean", "median", *(f"p{word(one)}" for one in percentiles)):
            lines.append(_line(f"{kind.capitalize()} {short} (ms):", result[f"{kind}_{name}_ms"]))
    if result["stages"]:
        lines.append("Stages in the Server (mean / p99)".center(_WIDTH, "-"))
        for name, found in result["stages"].items():
            lines.append(_line(f"{name.capitalize()} (ms):", f"{found['mean']:.2f} / {found['p99']:.2f}"))
    return "\n".join([*lines, "=" * _WIDTH, *notes(result)])


def _head(result: Mapping[str, Any]) -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = [
        ("Successful requests:", result["completed"]),
        ("Failed requests:", result["failed"]),
    ]
    if result.get("max_concurrency"):
        rows.append(("Maximum request concurrency:", result["max_concurrency"]))
    if isinstance(result.get("request_rate"), float):
        rows.append(("Request rate configured (RPS):", result["request_rate"]))
    rows += [
        ("Benchmark duration (s):", result["duration"]),
        ("Total input tokens:", result["total_input_tokens"]),
        ("Total generated tokens:", result["total_output_tokens"]),
        ("Request throughput (req/s):", result["request_throughput"]),
    ]
    if result.get("request_goodput") is not None:
        rows.append(("Request goodput (req/s):", result["request_goodput"]))
    return [
        *rows,
        ("Output token throughput (tok/s):", result["output_throughput"]),
        ("Peak output token throughput (tok/s):", result["max_output_tokens_per_s"]),
        ("Peak concurrent requests:", result["max_concurrent_requests"]),
        ("Total token throughput (tok/s):", result["total_token_throughput"]),
    ]


def notes(result: Mapping[str, Any]) -> list[str]:
    """What a reader of the figures must know, a sentence a line."""
    found = [
        f"{one['count']} failed ({kind}), such as: {one['example']}"
        for kind, one in result["failures"].items()
    ]
    if result["unanswered"]:
        found.append(f"interrupted: {result['unanswered']} requests without an answer are not counted")
    if result["completed"] and result["output_tokens_from"] == "chunks":
        found.append("the server does not count output tokens: a chunk with text is taken for one")
    if result["completed"] and result["input_tokens_from"] == "words":
        found.append("the server does not count input tokens: words are taken for tokens, pictures for none")
    if result["not_streamed"]:
        found.append(
            f"{result['not_streamed']} answers came whole, not as a stream: their TTFT is their E2EL"
        )
    if result.get("left_out"):
        found.append(f"the server refuses {' and '.join(result['left_out'])}, which was left out")
    if result["p99_send_lag_ms"] > _LATE:
        found.append(
            f"requests were sent up to {result['p99_send_lag_ms']:.0f} ms late (p99): this client cannot keep up"
        )
    return found


def record(result: Mapping[str, Any], *, detailed: bool) -> dict[str, Any]:
    """What is written to a file: everything, or the figures without those of each request."""
    return {name: value for name, value in result.items() if detailed or name not in DETAILS}


def sweep_table(results: Sequence[Mapping[str, Any]]) -> str:
    """One line a load of a sweep."""
    head = ("load", "req/s", "tok/s", "TTFT ms", "p99", "TPOT ms", "p99", "E2EL ms", "p99", "failed")
    lines = ["".join(f"{name:>10}" for name in head)]
    for result in results:
        cells = [f"{result['load']:g}", f"{result['request_throughput']:.2f}"]
        cells.append(f"{result['output_throughput']:.1f}")
        for name in ("ttft", "tpot", "e2el"):
            cells += [f"{result[f'median_{name}_ms']:.1f}", f"{result[f'p99_{name}_ms']:.1f}"]
        lines.append("".join(f"{cell:>10}" for cell in [*cells, str(result["failed"])]))
    return "\n".join(lines)


def _line(name: str, value: Any) -> str:
    text = f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{name:<40} {text:<9}".rstrip()
