"""From what was measured to the tables of docs/benchmarks.md."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from offline.report import Row

from online.contestants import ENGINE

_OURS = "sightline"
_FIGURES = ("failed", "output_throughput", "request_throughput", "duration", "median_ttft_ms", "p99_ttft_ms")
_MORE = ("median_tpot_ms", "median_itl_ms", "p99_itl_ms", "median_e2el_ms", "server_cpu_s", "client_cpu_s")

Rounds = Sequence[Mapping[str, Any]]


def middle(rounds: Rounds) -> dict[str, Any]:
    """The median of every figure over the rounds in which the contestant answered."""
    found: dict[str, Any] = {}
    for name in ("ready_s", "first_answer_s", "idle_cpu"):
        if values := [one[name] for one in rounds if name in one]:
            found[name] = statistics.median(values)
    found["levels"] = {
        clients: {
            name: statistics.median(values)
            for name in (*_FIGURES, *_MORE)
            if (values := [one["levels"][clients][name] for one in rounds if name in one["levels"][clients]])
        }
        for clients in (rounds[0]["levels"] if rounds else {})
    }
    return found


def starts(middles: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Until ready, until answered, and at rest."""
    return [
        {
            "": name,
            "ready s": found["ready_s"],
            "first answer s": found.get("first_answer_s"),
            "idle, % of a core": 100 * found["idle_cpu"] if "idle_cpu" in found else None,
        }
        for name, found in middles.items()
        if "ready_s" in found
    ]


def loads(middles: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """By clients and contestant."""
    rows: list[Row] = []
    for clients in dict.fromkeys(level for found in middles.values() for level in found["levels"]):
        for name, found in middles.items():
            if (level := found["levels"].get(clients)) is not None:
                rows.append(
                    {
                        "clients": clients,
                        "": name,
                        "req/s": level["request_throughput"],
                        "tokens/s": level["output_throughput"],
                        "TTFT ms": level["median_ttft_ms"],
                        "TTFT p99": level["p99_ttft_ms"],
                        "TPOT ms": level["median_tpot_ms"],
                        "ITL p99": level["p99_itl_ms"],
                        "E2EL ms": level["median_e2el_ms"],
                        "failed": level["failed"],
                    }
                )
    if not any(row["failed"] for row in rows):
        for row in rows:
            del row["failed"]
    return rows


def ratios(middles: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """How many times each peer's throughput, and how many times as soon the first token, ours is."""
    rows: list[Row] = []
    ours = middles.get(_OURS, {"levels": {}})["levels"]
    for name, found in middles.items():
        if name in (_OURS, ENGINE):
            continue
        cells: Row = {"": f"{_OURS} : {name}"}
        for clients, level in found["levels"].items():
            if clients in ours:
                mine = ours[clients]
                cells[f"tokens/s at {clients}"] = mine["output_throughput"] / level["output_throughput"]
                cells[f"TTFT at {clients}"] = level["median_ttft_ms"] / mine["median_ttft_ms"]
        if len(cells) > 1:
            rows.append(cells)
    return rows


def overhead(rounds: Mapping[str, Rounds]) -> list[Row]:
    """What HTTP adds to the engine alone, in percent of the time for the same prompts: the median over the rounds of
    the ratio in each round, with the rounds' least and most beside it."""
    pairs = [
        (served["levels"], alone["levels"])
        for served in rounds.get(_OURS, [])
        for alone in rounds.get(ENGINE, [])
        if served.get("round") == alone.get("round")
    ]
    rows: list[Row] = []
    for clients in pairs[0][0] if pairs else {}:
        added = [
            100 * (served[clients]["duration"] / alone[clients]["duration"] - 1) for served, alone in pairs
        ]
        first = [
            served[clients]["median_ttft_ms"] - alone[clients]["median_ttft_ms"] for served, alone in pairs
        ]
        rows.append(
            {
                "clients": clients,
                "HTTP adds %": f"{statistics.median(added):+.1f}",
                "least": f"{min(added):+.1f}",
                "most": f"{max(added):+.1f}",
                "to TTFT ms": f"{statistics.median(first):+.1f}",
            }
        )
    return rows
