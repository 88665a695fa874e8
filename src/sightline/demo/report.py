"""report.json, accuracy.png and report.html out of what the steps left."""

from __future__ import annotations

import json
import math
import platform
import random
from collections import Counter
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import sightline
from sightline.demo import dataset, words
from sightline.demo.charts import draw_accuracy, loss_curve
from sightline.demo.client import data_url
from sightline.demo.run_folder import RunFolder
from sightline.demo.settings import KINDS, TRAINING, Settings
from sightline.demo.summary import next_steps
from sightline.files import replacing, write_json

_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "easy-vqa")
_SHOWN_OF_KIND = 8
_MISTAKES = 10


def write_report(run: RunFolder, settings: Settings, total: Callable[[], float]) -> dict[str, Any]:
    """Write the three files into the run's folder.

    Args:
        total: gives the seconds of the whole command so far.

    Returns:
        The contents of report.json.
    """
    results = {done.name: done.result for done in run.done}
    rows = answer_rows(run.path)
    report = summary(run, settings, results)
    draw_accuracy({"all": _all_kinds(report), **report["accuracy_by_kind"]}, run.path / "accuracy.png")
    # The page takes moments to draw; its own time is not in its timings.
    report["total_seconds"] = round(total(), 2)
    page = render(report, rows, run.path, settings)
    write_json(run.path / "report.json", report)
    with replacing(run.path / "report.html") as file:
        file.write(page)
    return report


def summary(run: RunFolder, settings: Settings, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What the run reached, as plain values; `total_seconds` is still to come."""
    before, after, train = results["before"], results["after"], results["train"]
    return {
        "accuracy_before": before["accuracy"],
        "accuracy_after": after["accuracy"],
        "accuracy_by_kind": {
            kind: {
                "before": words.share(before["by_kind"][kind]),
                "after": words.share(after["by_kind"][kind]),
                "right_before": before["by_kind"][kind][0],
                "right_after": after["by_kind"][kind][0],
                "questions": after["by_kind"][kind][1],
                "guess": 1 / len(answers),
            }
            for kind, answers in KINDS.items()
        },
        "questions": sum(count for _, count in after["by_kind"].values()),
        "train_seconds": train["train_seconds"],
        "total_seconds": 0.0,
        "samples_per_second": train["samples_per_second"],
        "peak_memory_bytes": train["peak_memory_bytes"],
        "server_answers": results["serve"]["answers"],
        "steps_trained": train["steps"],
        "samples_trained": train["steps"] * train["batch_size"],
        "final_loss": train["final_loss"],
        "trainable_parameters": train["trainable_parameters"],
        "model": results["model"],
        "data": results["data"],
        "settings": {
            "train_seconds": settings.train_seconds,
            "questions": settings.questions,
            "seed": settings.seed,
            "base": None if settings.base is None else str(settings.base),
            "training": TRAINING,
        },
        "environment": environment(),
        "steps": [
            {"name": done.name, "seconds": round(done.seconds_without_download, 2), "state": done.state}
            for done in run.done
        ],
    }


def environment() -> dict[str, Any]:
    """Device, cores, system and the versions of what computed."""
    import torch

    from sightline.hardware.accelerator import find

    accelerator = find()
    return {
        "device": accelerator.name,
        "kind": accelerator.kind,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {"sightline": sightline.__version__, **{name: _version(name) for name in _LIBRARIES}},
    }


def render(report: dict[str, Any], rows: list[dict[str, Any]], folder: Path, settings: Settings) -> str:
    """The page, with everything in it.

    Args:
        rows: of `answer_rows`.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from sightline.progress import duration, size
    from sightline.training.log import read_log

    pages = Environment(
        loader=PackageLoader("sightline.demo", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {
        "percent": words.percent,
        "duration": duration,
        "size": size,
        "millions": words.millions,
    }
    worked = sum(step["seconds"] for step in report["steps"])
    served = [{**answer, "image": data_url(Path(answer["picture"]))} for answer in report["server_answers"]]
    pretrained = report["model"]["pretrained"]
    page = pages.get_template("report.html").render(
        r=report,
        total=_all_kinds(report),
        kinds=report["accuracy_by_kind"],
        interval=interval,
        curve=loss_curve(read_log(folder / "training" / "log.jsonl")),
        cards=cards(rows, settings.seed),
        mistakes=mistakes(rows),
        wrong=sum(not row["right_after"] for row in rows),
        served=served,
        pretrained=pretrained,
        pretraining=json.loads(pretrained["training"]) if pretrained else {},
        rest={"name": "rest", "seconds": max(0.0, report["total_seconds"] - worked), "state": "new"},
        longest=max(step["seconds"] for step in report["steps"]),
        next_steps=next_steps(report, folder),
    )
    return page.replace(" %", "\N{NO-BREAK SPACE}%")


def interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share: Wilson's score interval."""
    z = 1.96
    middle = (right + z * z / 2) / (count + z * z)
    half = z / (count + z * z) * math.sqrt(right * (count - right) / count + z * z / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def cards(rows: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Held-out rows to show: drawn at random, the same number of each kind, whether right or wrong."""
    rng = random.Random(seed)
    chosen = []
    for kind in KINDS:
        known = [row for row in rows if row["kind"] == kind]
        chosen += rng.sample(known, min(_SHOWN_OF_KIND, len(known)))
    return [{**row, "image": data_url(Path(row["picture"]))} for row in chosen]


def mistakes(rows: list[dict[str, Any]]) -> list[tuple[str, str, str, int]]:
    """(kind, expected, answered, times) of the most frequent wrong answers after training."""
    wrong = (row for row in rows if not row["right_after"])
    found = Counter((row["kind"], row["expected"], row["after"]) for row in wrong)
    return [(*which, count) for which, count in found.most_common(_MISTAKES)]


def answer_rows(folder: Path) -> list[dict[str, Any]]:
    """Held-out rows with the answers before and after, and whether they are right."""
    from sightline.engine.offline.accuracy import score

    scored = [score(dataset.read_json_rows(folder / name)).rows for name in ("before.jsonl", "after.jsonl")]
    return [
        {
            **row,
            "before": words.shown(before),
            "after": words.shown(after),
            "right_before": before["right"],
            "right_after": after["right"],
        }
        for row, before, after in zip(
            words.held_out(folder / "data" / dataset.HELD_OUT), *scored, strict=True
        )
    ]


def _all_kinds(report: dict[str, Any]) -> dict[str, Any]:
    kinds = report["accuracy_by_kind"].values()
    return {
        "before": report["accuracy_before"],
        "after": report["accuracy_after"],
        "right_before": sum(kind["right_before"] for kind in kinds),
        "right_after": sum(kind["right_after"] for kind in kinds),
        "questions": report["questions"],
        "guess": None,
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
