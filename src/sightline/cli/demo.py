"""sightline demo: parse, run the journey, say where the report is and what comes next."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder of the run.")] = Path(
        "runs/demo"
    ),
    train_seconds: Annotated[float, typer.Option(help="Seconds of training.")] = 240.0,
    questions: Annotated[int, typer.Option(help="Held-out questions to measure with.")] = 500,
    seed: Annotated[int, typer.Option(help="Chooses questions and training rows, and the training.")] = 0,
    base: Annotated[
        Path | None, typer.Option(help="A Qwen-VL checkpoint folder instead of the built-in model.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what an earlier run left there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """The whole journey on a small built-in model: fine-tune, merge, measure, serve, ask.

    Running it again goes on where an earlier run stopped.

    Example:  sightline demo --train-seconds 60
    """
    started = time.perf_counter()
    from sightline.demo.journey import run_demo
    from sightline.demo.settings import Settings
    from sightline.demo.summary import closing_lines
    from sightline.progress import note

    settings = Settings(train_seconds, questions, seed, base)
    report = run_demo(output, settings, fresh=fresh, say=note if as_json else typer.echo, started=started)
    if as_json:
        typer.echo(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        typer.echo("\n".join(closing_lines(report, output)))
