"""`sightline video compare`: what one run lost against another, in figures and as a sheet to look at."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.progress import duration

if TYPE_CHECKING:
    from sightline.video.sheets.report import Found, Report

EXAMPLE = "Example: sightline video compare exact.mp4 cached.mp4 -o sheet"


def command(
    reference: Annotated[
        Path,
        typer.Argument(
            metavar="A", help="The exact run: a video, a folder of PNG frames, or a folder of videos."
        ),
    ],
    other: Annotated[Path, typer.Argument(metavar="B", help="The run that is held against it, likewise.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            help="Write a sheet of the frames there; without it, figures only.",
        ),
    ] = None,
    show: Annotated[int, typer.Option(min=1, help="Of two folders, show the frames of so many pairs.")] = 6,
    amplify: Annotated[
        float, typer.Option(min=1.0, help="Multiply differences in pictures with this.")
    ] = 4.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a sheet that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
) -> None:
    """Compare two runs of one prompt and seed, or two folders of runs by their names.

    Fidelity, worst frame, settings that differ and speed-up are printed; with -o, sheet.html and sheet.png show the
    frames side by side with their differences. PNG frames (`--save-frames`) are read without loss; of a video alone the
    codec's noise is measured too, and the output says so.
    """
    from sightline.video.sheets.report import check_sheet, compare_runs, write_sheet

    if output is not None:
        check_sheet(output, overwrite)
    report = compare_runs(reference, other)
    if output is not None:
        write_sheet(report, output, show=show, amplify=amplify, overwrite=overwrite)
    if as_json:
        sheet = {} if output is None else {"sheet": str(output / "sheet.html")}
        typer.echo(json.dumps(report.to_json() | sheet, ensure_ascii=False))
        return
    _print_one(report.found[0]) if len(report.found) == 1 else _print_all(report)
    _print_rest(report)
    if output is not None:
        typer.echo(f"{output / 'sheet.html'} and {output / 'sheet.png'} show them side by side.")


def _print_one(found: Found) -> None:
    fidelity = found.line.fidelity
    typer.echo(f"{found.pair[1].name} against {found.pair[0].name}")
    typer.echo(f"  {'':<16}{'all':>9}{'worst frame':>14}")
    rows = (
        ("PSNR, dB", f"{fidelity.psnr:.2f}", f"{fidelity.psnr_worst:.2f} (frame {fidelity.worst_frame})"),
        ("SSIM", f"{fidelity.ssim:.4f}", f"{fidelity.ssim_worst:.4f}"),
        ("HaarPSI", f"{fidelity.haarpsi:.4f}", f"{fidelity.haarpsi_worst:.4f}"),
        ("temporal error", f"{fidelity.temporal_error:.3f}", f"{fidelity.temporal_error_worst:.3f}"),
        ("flicker", f"{fidelity.flicker:.3f}", ""),
    )
    for name, whole, worst in rows:
        value, _, frame = worst.partition(" ")
        typer.echo(f"  {name:<16}{whole:>9}{value:>14} {frame}".rstrip())
    reference, other = (run.seconds for run in found.pair)
    for part in [part for part in reference if part in other]:
        faster = f", {reference[part] / other[part]:.2f}x" if other[part] > 0 else ""
        typer.echo(f"  {part:<16}{_seconds(reference[part])} and {_seconds(other[part])}{faster}")
    for name, (mine, its) in found.differing.items():
        typer.echo(f"  {name}: {mine} and {its}")


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds < 60 else duration(seconds)


def _print_all(report: Report) -> None:
    first = report.found[0].pair
    typer.echo(f"{first[1].name} against {first[0].name}, {len(report.found)} pairs")
    width = max(len(one.line.title) for one in report.found)
    typer.echo(f"  {'':<{width}}  PSNR, dB   worst frame     SSIM  HaarPSI  flicker   faster")
    for one in report.found:
        found, faster = one.line.fidelity, one.line.faster
        typer.echo(
            f"  {one.line.title:<{width}}{found.psnr:>10.2f}{found.psnr_worst:>9.2f} ({found.worst_frame:>3})"
            f"{found.ssim:>9.4f}{found.haarpsi:>9.4f}{found.flicker:>9.3f}{f'{faster:.2f}x' if faster else '-':>9}"
        )
    differing = {name: values for one in report.found for name, values in one.differing.items()}
    for name, (mine, its) in differing.items():
        every = all(one.differing.get(name) == [mine, its] for one in report.found)
        typer.echo(f"  {name}: " + (f"{mine} and {its}" if every else "differs in some pairs"))


def _print_rest(report: Report) -> None:
    from sightline.video.sheets.report import lead

    if len(report.found) > 1:
        typer.echo(f"{lead(report)} The worst is {report.worst.line.title}.")
    for side, names in zip(("A", "B"), report.only, strict=True):
        if names:
            typer.echo(
                f"{len(names)} only in {side}: {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}"
            )
    # Both runs of a pair may have the same name, and the same note.
    notes = Counter(note for one in report.found for note in set(one.notes))
    for note, count in sorted(notes.items()):
        of = f" ({count} of {len(report.found)} pairs)" if len(report.found) > 1 else ""
        typer.echo(f"note: {note}{of}")
