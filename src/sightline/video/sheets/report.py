"""Two runs, or two folders of them, against each other: figures of every pair, and a sheet of the worst ones."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sightline.errors import SightlineError
from sightline.files import write_json
from sightline.progress import track
from sightline.video.sheets.comparison import Comparison, Line
from sightline.video.sheets.runs import Paired, Run, pair

SHEET_PAGE, SHEET_PICTURE, SHEET_FIGURES = "sheet.html", "sheet.png", "compare.json"


@dataclass(frozen=True)
class Found:
    """What a pair came to.

    Attributes:
        pair: (reference, other).
        line: the figures.
        notes: what has to be known beside them.
    """

    pair: tuple[Run, Run]
    line: Line
    notes: tuple[str, ...]

    @property
    def differing(self) -> dict[str, list[str]]:
        """Settings that are not the same, with both values; empty where one of the records is not there."""
        from sightline.video.sheets.page import differing

        settings = [run.settings for run in self.pair]
        return differing(settings) if all(settings) else {}

    def to_json(self) -> dict[str, Any]:
        """All of it by name."""
        reference, other = self.pair
        return {
            "name": self.line.title,
            "fidelity": self.line.fidelity.numbers(),
            "seconds": {"reference": reference.seconds, "other": other.seconds},
            "times_as_fast": self.line.faster,
            "settings_that_differ": self.differing,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Report:
    """Everything that was compared, in the order of the names."""

    found: tuple[Found, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]

    @property
    def worst(self) -> Found:
        """The pair with the lowest PSNR."""
        return min(self.found, key=lambda one: one.line.fidelity.psnr)

    def to_json(self) -> dict[str, Any]:
        """As `compare.json` has it."""
        return {
            "pairs": [one.to_json() for one in self.found],
            "worst": self.worst.line.title,
            "psnr_worst": self.worst.line.fidelity.psnr,
            "psnr_median": statistics.median(one.line.fidelity.psnr for one in self.found),
            "times_as_fast_median": self.faster,
            "unpaired": {"reference": list(self.only[0]), "other": list(self.only[1])},
        }

    @property
    def faster(self) -> float | None:
        """Median of how many times as fast; None where a pair's is not known."""
        ratios = [one.line.faster for one in self.found if one.line.faster is not None]
        return statistics.median(ratios) if len(ratios) == len(self.found) else None


def compare_runs(first: str | Path, second: str | Path) -> Report:
    """Compare a run with its reference, or those of two folders by name.

    Args:
        first: the reference: a video, a folder of PNG frames, or a folder of videos.

    Raises:
        SightlineError: a file is missing or broken, with its name.
        UsageError: two runs that do not fit each other, with the numbers.
    """
    paired = pair(first, second)
    pairs = (
        track(paired.pairs, "comparing", total=len(paired.pairs)) if len(paired.pairs) > 1 else paired.pairs
    )
    # Frames are let go of after each pair: two folders of videos fit into no memory.
    return Report(tuple(_found(paired, one) for one in pairs), paired.only)


def write_sheet(
    report: Report, folder: Path, *, show: int = 6, amplify: float = 4.0, overwrite: bool = False
) -> None:
    """Write `sheet.html`, `sheet.png` and `compare.json`.

    Args:
        show: of so many pairs frames are shown, the worst.

    Raises:
        SightlineError: something is there already, or cannot be written.
    """
    from sightline.video.sheets.page import write_page
    from sightline.video.sheets.picture import side_by_side

    check_sheet(folder, overwrite)
    ordered = sorted(report.found, key=lambda one: one.line.fidelity.psnr)[:show]
    shown = [_comparison(one.pair, _full_title(one)) for one in ordered]
    write_page(
        shown,
        folder / SHEET_PAGE,
        title=_title(report),
        lead=lead(report),
        amplify=amplify,
        lines=[one.line for one in report.found],
    )
    side_by_side(shown, folder / SHEET_PICTURE, amplify=amplify)
    write_json(folder / SHEET_FIGURES, report.to_json())


def check_sheet(folder: Path, overwrite: bool) -> None:
    """Raises SightlineError where a sheet is there already that may not be replaced."""
    if folder.exists() and not folder.is_dir():
        raise SightlineError(f"{folder} is a file; choose another folder with -o")
    for taken in (folder / name for name in (SHEET_PAGE, SHEET_PICTURE, SHEET_FIGURES)):
        if overwrite or not taken.exists():
            continue
        raise SightlineError(f"{taken} already exists; choose another folder with -o or give --overwrite")


def lead(report: Report) -> str:
    """What came out, in one or two sentences."""
    worst = report.worst.line
    faster = "" if report.faster is None else f", {report.faster:.2f} times as fast"
    if len(report.found) == 1:
        text = (
            f"PSNR {worst.fidelity.psnr:.1f} dB, {worst.fidelity.psnr_worst:.1f} dB in the worst frame "
            f"({worst.fidelity.worst_frame}){faster}."
        )
    else:
        median = statistics.median(one.line.fidelity.psnr for one in report.found)
        least = f"PSNR {worst.fidelity.psnr:.1f} dB at the worst, {median:.1f} dB median"
        text = f"{len(report.found)} pairs: {least}{faster}."
    if any(report.only):
        text += (
            f" Without a partner: {len(report.only[0])} of the reference, {len(report.only[1])} of the other."
        )
    return text


def _found(paired: Paired, pair: tuple[Run, Run]) -> Found:
    title = pair[1].title or pair[0].title
    if len(paired.pairs) > 1:
        # Prompts may occur twice in a batch; names do not.
        title = pair[1].stem
    comparison = _comparison(pair, title)
    notes = tuple(f"{run.name}: {run.note}" for run in comparison.runs if run.note)
    return Found(pair, comparison.lines()[0], notes)


def _comparison(pair: tuple[Run, Run], title: str) -> Comparison:
    reference, other = pair
    shown = other.shown()
    if not (reference.settings and other.settings):
        shown = replace(shown, settings={})
    return Comparison(reference.shown(), (shown,), title, reference.fps)


def _full_title(one: Found) -> str:
    """With the prompt, where runs go by their names."""
    prompt = one.pair[1].title or one.pair[0].title
    return prompt if one.line.title in ("", prompt) else f"{one.line.title}: {prompt}".rstrip(": ")


def _title(report: Report) -> str:
    reference, other = report.found[0].pair
    return f"{other.name} against {reference.name}"
