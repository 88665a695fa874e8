"""From what was measured to the tables of docs/benchmarks.md."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from operator import eq
from typing import Any

from offline.contest import Contestant
from offline.counts import Counts
from offline.engines import Job

Row = dict[str, float | str | None]
# Seconds or milliseconds that are compared between ours and a peer.
_COMPARED = ("cold_s", "repeat_s", "prefill_s", "encode_s", "decode_ms", "ready_s")


def medians(rounds: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of every figure, over the rounds."""
    names = [name for name, value in rounds[0].items() if isinstance(value, (int, float))]
    return {name: statistics.median(one[name] for one in rounds) for name in names}


def row(
    contestant: Contestant, found: Mapping[str, float], job: Job, counts: Counts, best: dict[str, float]
) -> Row:
    """One line: the figures, and beside them the share of what the machine's ceilings allow."""
    fill = {"batch": _batch, "context": _context, "single": _single, "encode": _encode}[job.mode]
    cells: Row = {"": contestant.name, "ready s": found["ready_s"]}
    cells |= fill(contestant.precision, found, job, counts, best)
    return cells | {"peak GB": found["peak_memory_gb"]}


def _batch(
    precision: str, found: Mapping[str, float], job: Job, counts: Counts, best: dict[str, float]
) -> Row:
    requests = len(job.prompts)
    tokens = requests * job.new_tokens
    step = counts.step_seconds(precision, best)
    encode = requests * counts.encode_seconds(job.image_size or (0, 0), precision, best)
    prefill = counts.prefill_seconds(found["prompt_tokens"], precision, best)
    cold = encode + prefill + (job.new_tokens - 1) * step
    repeat = found.get("repeat_s")
    return {
        "cold s": found["cold_s"],
        "tokens/s": tokens / found["cold_s"],
        "floor s": cold,
        "share %": 100 * cold / found["cold_s"],
        "repeat s": repeat,
        "repeat tokens/s": tokens / repeat if repeat else None,
        "decode ms": found["decode_ms"],
        "decode share %": 100 * 1e3 * step / found["decode_ms"],
    }


def _context(
    precision: str, found: Mapping[str, float], job: Job, counts: Counts, best: dict[str, float]
) -> Row:
    # In the middle of the answer.
    context = len(job.prompts) * (len(job.prompts[0]["ids"]) + job.new_tokens // 2)
    prefill = counts.prefill_seconds(sum(len(prompt["ids"]) for prompt in job.prompts), precision, best)
    step = counts.step_seconds(precision, best, context)
    return {
        "prefill s": found["prefill_s"],
        "prefill share %": 100 * prefill / found["prefill_s"],
        "decode ms": found["decode_ms"],
        "GB read": counts.step_bytes(precision, context) / 1e9,
        "floor ms": 1e3 * step,
        "times the floor": found["decode_ms"] / 1e3 / step,
    }


def _single(
    precision: str, found: Mapping[str, float], job: Job, counts: Counts, best: dict[str, float]
) -> Row:
    tokens = len(job.prompts[0]["ids"])
    prefill = counts.prefill_seconds(tokens, precision, best)
    step = counts.step_seconds(precision, best, tokens + job.new_tokens // 2)
    return {
        "prefill tokens/s": tokens / found["prefill_s"],
        "prefill share %": 100 * prefill / found["prefill_s"],
        "decode tokens/s": 1e3 / found["decode_ms"],
        "decode share %": 100 * 1e3 * step / found["decode_ms"],
    }


def _encode(
    precision: str, found: Mapping[str, float], job: Job, counts: Counts, best: dict[str, float]
) -> Row:
    floor = counts.encode_seconds(job.image_size or (0, 0), precision, best)
    return {"encode s": found["encode_s"], "floor s": floor, "share %": 100 * floor / found["encode_s"]}


def ratios(contestants: Sequence[Contestant], found: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """How many times as fast each of ours is as each peer, by every time that both have."""
    rows = []
    for ours in (one for one in contestants if one.ours):
        for peer in (one for one in contestants if not one.ours):
            cells: Row = {"": f"{ours.name} : {peer.name}"}
            for name in _COMPARED:
                left, right = found[ours.name].get(name), found[peer.name].get(name)
                if left and right:
                    cells[name.rsplit("_", 1)[0]] = right / left
            rows.append(cells)
    return rows


def agreement(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> str | None:
    """How often each engine's first token is the first engine's: an engine that looks away would be fast, too."""
    tokens = {
        name: [token for one in rounds for token in one.get("first_tokens", [])]
        for name, rounds in results.items()
    }
    (reference, expected), *others = tokens.items()
    if not (expected and others):
        return None
    counts = (f"{name} {sum(map(eq, expected, found))}" for name, found in others)
    return f"first tokens equal to those of {reference}, of {len(expected)}: {', '.join(counts)}"


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    names = list(dict.fromkeys(name for one in rows for name in one))
    lines = [names, ["---"] * len(names)]
    lines += [[_cell(one.get(name)) for name in names] for one in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def ceilings_line(best: Mapping[str, float]) -> str:
    return (
        f"ceilings: bf16 {best['bf16_flops'] / 1e9:,.0f} GFLOP/s, int8 {best['int8_ops'] / 1e9:,.0f} GOP/s, "
        f"reads {best['read_bytes'] / 1e9:.1f} GB/s, {best['threads']:.0f} threads"
    )


def _cell(value: float | str | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
