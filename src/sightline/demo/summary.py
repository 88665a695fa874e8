"""What is said at the end: the numbers that count, where the report is, what to try next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from sightline.demo.words import percent
from sightline.progress import duration

# Stands for the folder of a real checkpoint in the commands.
CHECKPOINT = "Qwen2.5-VL-3B-Instruct"


def closing_lines(report: dict[str, Any], output: Path) -> list[str]:
    """The last lines on the console."""
    kinds = report["accuracy_by_kind"].items()
    changes = [f"{kind} {percent(found['before'])} -> {percent(found['after'])}" for kind, found in kinds]
    lines = [
        "",
        f"Accuracy on {report['questions']} held-out questions: {percent(report['accuracy_before'])} before, "
        f"{percent(report['accuracy_after'])} after {duration(report['train_seconds'])} of training",
        f"  {'; '.join(changes)}",
        f"{duration(report['total_seconds'])} in all, {report['samples_per_second']:.1f} samples/s, "
        f"{report['peak_memory_bytes'] / 1e9:.1f} GB of memory, {report['environment']['device']}",
        f"Report: {output / 'report.html'}",
    ]
    if all(step["state"] == "reused" for step in report["steps"]):
        lines.append("All steps had been done by an earlier run; --fresh does them again.")
    for title, commands in next_steps(report, output).items():
        lines += ["", f"{title}:", *(f"  {command}" for command in commands)]
    return lines


def next_steps(report: dict[str, Any], output: Path) -> dict[str, list[str]]:
    """Commands to copy, under their titles."""
    merged = shlex.quote(str(output / "merged"))
    asked = report["server_answers"][-1]
    picture, question = shlex.quote(asked["picture"]), shlex.quote(asked["question"])
    return {
        "Ask the model that was just made": [
            f"sightline infer --model {merged} --image {picture} --prompt {question}",
            f"sightline serve --model {merged} --port 8000",
        ],
        f"The same with a real checkpoint ({CHECKPOINT} is its folder) and your own data": [
            "sightline data convert annotations.json -o train.jsonl --media-root images",
            f"sightline data check train.jsonl --model {CHECKPOINT}",
            f"sightline train model={CHECKPOINT} data=train.jsonl output=runs/mine max_pixels=802816",
            f"sightline merge --model {CHECKPOINT} --adapter runs/mine -o runs/mine-merged",
            "sightline serve --model runs/mine-merged --port 8000",
        ],
    }
