"""`sightline data`: convert data sets into rows of our own; check them before they cost a training run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline.errors import SightlineError, UsageError
from sightline.progress import note

if TYPE_CHECKING:
    from sightline.data.check import CheckReport

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Convert data sets into Sightline's rows, and check them.\n\n"
    "Example: sightline data convert annotations.json -o train.jsonl",
)
_SHOWN = 50  # faults printed unless --all


@app.command(epilog="Example: sightline data convert llava.json -o train.jsonl --media-root images")
def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A json or jsonl file, or easy-vqa[:test].")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The jsonl file to write.")],
    format: Annotated[
        str | None,
        typer.Option(
            "--from", help="llava, sharegpt, openai, alpaca, coco or easy-vqa; detected if not given."
        ),
    ] = None,
    max_samples: Annotated[int | None, typer.Option(min=1, help="Read at most this many rows.")] = None,
    media_root: Annotated[
        Path | None,
        typer.Option(help="Where relative media paths are looked for after the file's folder."),
    ] = None,
    captions: Annotated[str, typer.Option(help="COCO: all captions of a picture, or the first.")] = "all",
    prompt: Annotated[str | None, typer.Option(help="COCO: the question before each caption.")] = None,
    add_tags: Annotated[
        bool,
        typer.Option("--add-tags", help="Put missing <image> and <video> tags before the first question."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Convert a data set into a jsonl file of rows; faulty rows are reported and left out."""
    from sightline.data.formats import Options
    from sightline.data.formats import convert as convert_rows

    if captions not in ("all", "first"):
        raise UsageError(f"--captions is {captions!r}; write all or first")
    options = Options(max_samples=max_samples, media_root=_folder(media_root), captions=captions)
    if prompt is not None:
        options = Options(max_samples, options.media_root, captions, prompt)
    report = convert_rows(source, output, format=format, options=options, add_tags=add_tags)
    if as_json:
        _print_json(
            {
                "format": report.format,
                "output": str(output),
                "written": report.written,
                "missing_media": report.missing,
                "faulty": len(report.bad),
                "faults": [_fault(error.origin, error.kind, error.cause) for error in report.bad],
            }
        )
    else:
        _print_lines([str(error) for error in report.bad], everything=False)
        where = f"to {output}" if report.written else "(nothing written)"
        print(f"{report.format}: {_rows(report.written)} {where}, {len(report.bad):,} faulty left out")
        if report.missing:
            print(
                f"{_rows(report.missing)} of them with media that are not there "
                f"(first: {report.first_missing}); `data check` lists them, --media-root may find them"
            )
    if report.bad:
        raise typer.Exit(1)


@app.command(
    epilog="Example: sightline data check train.jsonl --model Qwen2.5-VL-3B-Instruct --max-length 4096"
)
def check(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="The json or jsonl file to check.")],
    model: Annotated[
        Path | None,
        typer.Option(help="Checkpoint folder that counts the tokens; its weights are not read."),
    ] = None,
    max_length: Annotated[int | None, typer.Option(min=1, help="Most tokens a sample may have.")] = None,
    max_pixels: Annotated[int | None, typer.Option(min=1, help="Limit of a picture, for the count.")] = None,
    media_root: Annotated[
        Path | None,
        typer.Option(help="Where relative media paths are looked for after the file's folder."),
    ] = None,
    max_samples: Annotated[int | None, typer.Option(min=1, help="Check at most this many rows.")] = None,
    write_good: Annotated[
        Path | None, typer.Option(help="Write the rows without fault to this jsonl.")
    ] = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode every medium: slow, finds all damage.")
    ] = False,
    all_faults: Annotated[
        bool, typer.Option("--all", help=f"Print all faults, not the first {_SHOWN}.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Report every faulty row with file, line and cause; exit 1 if there is one."""
    from sightline.data.check import check_file

    if max_length is not None and model is None:
        raise UsageError("--max-length counts tokens, which needs --model; give the checkpoint folder too")
    counter, markers = _counter(model, max_pixels)
    report = check_file(
        data,
        counter=counter,
        max_length=max_length,
        media_root=_folder(media_root),
        max_samples=max_samples,
        end_markers=markers,
        decode=decode,
        keep_good=write_good is not None,
    )
    if write_good is not None:
        from sightline.data.rows import to_row, write_rows

        write_rows(write_good, (to_row(conversation) for conversation in report.good))
    if as_json:
        _print_json(_as_json(report))
    else:
        _print_report(report, all_faults, counted=counter is not None, write_good=write_good)
    if report.faults:
        raise typer.Exit(1)


def _counter(model: Path | None, max_pixels: int | None) -> tuple[Any, tuple[str, ...]]:
    """What counts tokens, and the texts that the model takes for the end of a turn."""
    from sightline.data.check import END_MARKERS

    if model is None:
        return None, END_MARKERS
    note(f"reading the tokenizer of {model}")
    from sightline.models.processor import load_processor

    processor = load_processor(model, max_pixels=max_pixels)
    end = processor.tokenizer.eos_token
    return processor.count, tuple(dict.fromkeys((*END_MARKERS, *([end] if end else []))))


def _folder(path: Path | None) -> Path | None:
    if path is not None and not path.is_dir():
        raise SightlineError(f"--media-root {path} is not a folder; give the folder of the media")
    return path


def _print_report(report: CheckReport, all_faults: bool, *, counted: bool, write_good: Path | None) -> None:
    from sightline.data.check import KINDS

    _print_lines([str(fault) for fault in report.faults], everything=all_faults)
    good = report.rows - report.faulty_rows
    print(f"{report.file}: {_rows(report.rows)}, {good:,} good, {report.faulty_rows:,} faulty")
    for kind, count in report.by_kind.items():
        print(f"  {count:6,}  {KINDS.get(kind, kind)}")
    if write_good is not None:
        print(f"good rows written to {write_good}")
    if counted:
        _print_histogram(report)
    else:
        print("tokens were not counted: that needs --model")


def _print_histogram(report: CheckReport) -> None:
    from rich.console import Console

    from sightline.data.histogram import histogram, percentile

    if not report.lengths:
        return
    tokens = report.lengths
    print(
        f"tokens per row: {sum(tokens):,} in all, {sum(report.vision_lengths):,} of images and videos; "
        f"median {percentile(tokens, 50):,}, 95 % up to {percentile(tokens, 95):,}, most {max(tokens):,}"
    )
    console = Console(highlight=False)
    rows = histogram(tokens)
    most = max(count for _, _, count in rows)
    width = max(10, min(50, console.width - 32))
    for low, high, count in rows:
        bar = "█" * max(round(count / most * width), 1 if count else 0)
        console.print(f"  {low:>8,} - {high:<8,} [cyan]{bar}[/cyan] {count:,}")


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def _print_lines(lines: list[str], *, everything: bool) -> None:
    shown = lines if everything else lines[:_SHOWN]
    for line in shown:
        print(line)
    if len(lines) > len(shown):
        print(f"... and {len(lines) - len(shown):,} more")


def _as_json(report: CheckReport) -> dict[str, Any]:
    from sightline.data.histogram import histogram

    return {
        "file": report.file,
        "rows": report.rows,
        "good": report.rows - report.faulty_rows,
        "faulty": report.faulty_rows,
        "causes": report.by_kind,
        "faults": [_fault(fault.origin, fault.kind, fault.cause) for fault in report.faults],
        "tokens": {
            "counted": len(report.lengths),
            "total": sum(report.lengths),
            "vision": sum(report.vision_lengths),
            "most": max(report.lengths, default=0),
            "histogram": [
                {"from": low, "to": high, "rows": rows} for low, high, rows in histogram(report.lengths)
            ],
        },
    }


def _fault(origin: Any, kind: str, cause: str) -> dict[str, Any]:
    return {"file": origin.file, "line": origin.line, "kind": kind, "cause": cause}


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, ensure_ascii=False, indent=2))
