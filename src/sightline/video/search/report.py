"""What a search leaves: the plans, a table, a plot of the front, and frames side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sightline.files import read_object, write_json
from sightline.video.prompts import slug
from sightline.video.search.baselines import FEWER
from sightline.video.search.goal import Result
from sightline.video.search.measure import Measure, Subject
from sightline.video.search.race import Entry
from sightline.video.search.search import Found, calls, with_evidence
from sightline.video.sheets.comparison import Comparison, Shown
from sightline.video.sheets.front import Row, front
from sightline.video.sheets.page import write_page

MOST_SHOWN = 3  # prompts on the page


def write_report(found: Found, folder: Path, measure: Measure, fps: int) -> None:
    """Everything but `state/`; nothing where it was written before. `search.json` comes last.

    Args:
        measure: to generate again what is shown.
        fps: frames a second of the page.
    """
    data = json.loads(json.dumps(to_json(found)))
    done = folder / "search.json"
    if done.exists() and (folder / "report.html").exists() and read_object(done) == data:
        return
    for entry in found.front:
        with_evidence(entry).plan.save(folder / "plans" / f"{_file(entry)}.json")
    with_evidence(found.chosen).plan.save(folder / "plans" / f"{_file(found.chosen)}.json")
    with_evidence(found.chosen).plan.save(folder / "best.json")
    rows = [
        Row(
            entry.name,
            entry.family,
            "baseline" if entry.baseline or entry.family == FEWER else "ours",
            found.exact[0] / result.speed,
            result.psnr,
        )
        for entry, result in _complete(found)
    ]
    title = f"{measure.setting.model or 'Wan'}, {measure.setting.steps} steps, {found.exact[0]:.3g} s exact"
    front(rows, folder / "front.png", exact=found.exact[0], title=title)
    write_page(
        _comparisons(found, measure, fps),
        folder / "report.html",
        title=f"Searched: {found.task.goal}",
        lead=conclusion(found),
        front_png=folder / "front.png",
    )
    write_json(done, data)


def to_json(found: Found) -> dict[str, Any]:
    """The table of every candidate, with all figures."""
    return {
        "goal": str(found.task.goal),
        "reached": found.reached,
        "chosen": found.chosen.name,
        "exact_seconds": found.exact[0],
        "exact_total_seconds": found.exact[1],
        "subjects": [{"prompt": each.prompt, "seed": each.seed} for each in found.task.subjects],
        "holdout": None
        if found.holdout is None
        else {
            "subjects": [{"prompt": each.prompt, "seed": each.seed} for each in found.task.holdout],
            **found.holdout.to_json(),
        },
        "candidates": [_candidate(entry, found) for entry in found.entries],
    }


def table(found: Found) -> list[str]:
    """Lines for a terminal: what ran on every prompt, fastest first; `*` is on the front, `>` was chosen."""
    lines = [
        f"  {'plan':<30}{'seconds':>9}{'faster':>8}{'steps':>7}{'calls':>7}{'PSNR worst':>12}{'median':>8}{'SSIM':>7}"
        f"{'HaarPSI':>9}{'flicker':>9}"
    ]
    for entry, result in sorted(_complete(found), key=lambda each: -each[1].speed):
        mark = ">" if entry is found.chosen else "*" if entry in found.front else " "
        lines.append(_line(f"{mark} {entry.name}", result, entry, found.exact[0]))
    lines.append("  > chosen; * nothing else is both faster and nearer")
    if found.holdout is not None:
        lines.append(_line("  chosen, on what was held out", found.holdout, found.chosen, found.exact[0]))
    return lines


def conclusion(found: Found) -> str:
    """One sentence: what was found."""
    result, exact = found.chosen.result(), found.exact[0]
    what = (
        f"{result.speed:.2f} times as fast ({exact:.3g} s to {exact / result.speed:.3g} s of denoising, "
        f"{result.speed_total:.2f} times in all) at {result.psnr:.1f} dB in the worst of {result.trials} prompts and "
        f"seeds"
    )
    if found.holdout is not None:
        what += (
            f" (held out: {found.holdout.speed:.2f} times at {found.holdout.psnr:.1f} dB in the worst of "
            f"{found.holdout.trials})"
        )
    name = f"{found.chosen.name} ({found.chosen.plan.steps} steps, {sum(calls(found.chosen).values())} calls)"
    if found.reached:
        return f"{name}: {what}"
    return f"no plan is {found.task.goal}; the nearest is {name}: {what}"


def _line(name: str, result: Result, entry: Entry, exact: float) -> str:
    measures, count = result.fidelity, sum(calls(entry).values())
    return (
        f"{name:<32}{exact / result.speed:>9.3g}{result.speed:>7.2f}x{entry.plan.steps:>7}{count:>7g}"
        f"{result.psnr:>12.2f}{result.psnr_median:>8.2f}{measures['ssim']:>7.3f}{measures['haarpsi']:>9.3f}{measures['flicker']:>9.3f}"
    )


def _candidate(entry: Entry, found: Found) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": entry.name,
        "family": entry.family,
        "searched": not entry.baseline,
        "front": entry in found.front,
        "steps": entry.plan.steps,
        "calls": calls(entry),
        "draft": None if entry.draft is None else entry.draft.to_json(),
        "predicted_error": entry.predicted,
        "result": entry.result().to_json() if entry.trials else None,
    }
    data["trials"] = [
        {"prompt": subject.prompt, "seed": subject.seed, **trial.to_json()}
        for subject, trial in entry.trials.items()
    ]
    return data


def _complete(found: Found) -> list[tuple[Entry, Result]]:
    ran = [entry for entry in found.entries if len(entry.trials) == len(found.task.subjects)]
    results = [(entry, entry.result()) for entry in ran]
    return [each for each in results if not math.isnan(each[1].psnr)]


def _comparisons(found: Found, measure: Measure, fps: int) -> list[Comparison]:
    """The worst prompts of the chosen plan first; beside it the best baseline that is no slower by much."""
    chosen = found.chosen
    shown = [chosen, *_rivals(found)]
    by_psnr = sorted(chosen.trials, key=lambda subject: chosen.trials[subject].fidelity["psnr"])
    comparisons = []
    for subject in by_psnr[:MOST_SHOWN]:
        others = tuple(
            Shown(entry.name, measure.video(entry.plan, subject), entry.trials[subject].seconds)
            for entry in shown
        )
        reference = Shown("exact", measure.frames(subject), chosen.trials[subject].exact_seconds)
        comparisons.append(Comparison(reference, others, _title(subject), fps))
    return comparisons


def _rivals(found: Found) -> Sequence[Entry]:
    """Of each family of baselines the one whose speed is nearest to the chosen plan's."""
    wanted = found.chosen.result().speed
    nearest: dict[str, Entry] = {}
    for entry, result in _complete(found):
        if entry.baseline and entry is not found.chosen:
            other = nearest.get(entry.family)
            if other is None or abs(result.speed - wanted) < abs(other.result().speed - wanted):
                nearest[entry.family] = entry
    return list(nearest.values())


def _title(subject: Subject) -> str:
    return f"{subject.prompt} (seed {subject.seed})"


def _file(entry: Entry) -> str:
    return slug(entry.name)
