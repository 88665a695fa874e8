"""Latency and throughput against load, as one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.files import replacing

_INK, _SOFT = "#1f4fbf", "#9db7e8"
_SECOND, _SECOND_SOFT = "#c2571a", "#eebd98"


def draw_loads(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the results of a sweep: throughput, time to first token and end to end, time per output token.

    Lines are medians; the shade above reaches up to the 99th percentile.

    Raises:
        SightlineError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    ordered = sorted(results, key=lambda result: float(result["load"]))
    loads = [float(result["load"]) for result in ordered]
    figure = Figure(figsize=(11, 3.7), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _throughput(left, loads, ordered)
    _latency(middle, loads, ordered, "e2el", "end to end", 1e-3, (_SECOND, _SECOND_SOFT))
    _latency(middle, loads, ordered, "ttft", "first token", 1e-3, (_INK, _SOFT))
    middle.set(title="Latency", ylabel="seconds")
    _latency(right, loads, ordered, "tpot", "per output token", 1.0, (_INK, _SOFT))
    right.set(title="Time per output token", ylabel="milliseconds")
    by_rate = ordered[0]["load_kind"] == "rate"
    for axis in (left, middle, right):
        _dress(axis, loads, "requests per second, offered" if by_rate else "concurrent requests")
    for axis in (middle, right):
        axis.legend(frameon=False, fontsize=8, loc="upper left")
    figure.suptitle(_title(ordered[0]), fontsize=10)
    with replacing(path, "wb") as file:
        figure.savefig(file, format="png", dpi=140)


def _throughput(axis: Any, loads: list[float], results: Sequence[Mapping[str, Any]]) -> None:
    tokens = [result["output_throughput"] for result in results]
    axis.plot(loads, tokens, color=_INK, marker="o", markersize=4)
    for load, count, result in zip(loads, tokens, results, strict=True):
        axis.annotate(
            f"{result['request_throughput']:.3g} req/s",
            (load, count),
            textcoords="offset points",
            xytext=(5, -12),
            fontsize=7,
            color="#555555",
        )
    axis.margins(x=0.25)
    axis.set(title="Throughput", ylabel="output tokens per second")


def _latency(
    axis: Any,
    loads: list[float],
    results: Sequence[Mapping[str, Any]],
    name: str,
    label: str,
    scale: float,
    colours: tuple[str, str],
) -> None:
    ink, soft = colours
    middle = [result[f"median_{name}_ms"] * scale for result in results]
    high = [result[f"p99_{name}_ms"] * scale for result in results]
    axis.margins(x=0.12)
    axis.fill_between(loads, middle, high, color=soft, alpha=0.35, linewidth=0)
    axis.plot(loads, high, color=soft, linewidth=1, linestyle="--", label=f"{label}, p99")
    axis.plot(loads, middle, color=ink, marker="o", markersize=4, label=f"{label}, median")


def _dress(axis: Any, loads: list[float], label: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    if len(loads) > 1 and loads[-1] / loads[0] >= 4:
        axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(loads))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = axis.get_ylim()
    axis.set_ylim(0, high + 0.12 * (high - min(low, 0)))
    axis.set_xlabel(label)
    axis.title.set_fontsize(10)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _title(result: Mapping[str, Any]) -> str:
    tokens = result["total_input_tokens"] / max(result["completed"], 1)
    answer = result["total_output_tokens"] / max(result["completed"], 1)
    return f"{result['model_id']}: {tokens:.0f} prompt tokens, {answer:.0f} output tokens a request (mean)"
