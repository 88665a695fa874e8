"""`sightline video search`: parse, search, print."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline.cli.video import options as ours
from sightline.cli.video.building import load_options, settings_of
from sightline.errors import SightlineError, UsageError
from sightline.progress import note

if TYPE_CHECKING:
    from sightline.video.search.search import Task

EXAMPLE = "Example: sightline video search --model Wan2.1-T2V-1.3B-Diffusers --prompts prompts.txt --budget 2x -o found"
_PANEL = "What to find"


def command(
    prompts: Annotated[
        Path, typer.Option("--prompts", help="A prompt a line, of the kind that will be generated.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder; what is in it of the same search goes on.")
    ],
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="2.0x",
            help="The nearest video of those plans whose denoising is so many times as fast.",
            rich_help_panel=_PANEL,
        ),
    ] = None,
    min_psnr: Annotated[
        float | None,
        typer.Option(
            metavar="DB", help="The fastest plan that keeps this in the worst prompt.", rich_help_panel=_PANEL
        ),
    ] = None,
    seeds: Annotated[
        str, typer.Option(metavar="0,1", help="Each prompt is generated with each.", rich_help_panel=_PANEL)
    ] = "0",
    holdout: Annotated[
        int,
        typer.Option(
            min=0,
            help="So many prompts and seeds, the last ones, only measure what was chosen.",
            rich_help_panel=_PANEL,
        ),
    ] = 0,
    rounds: Annotated[
        int, typer.Option(min=0, help="Of small changes to the best plan, at most.", rich_help_panel=_PANEL)
    ] = 4,
    minutes: Annotated[
        float,
        typer.Option(min=0, help="Of generating for small changes, at most.", rich_help_panel=_PANEL),
    ] = 60.0,
    model: ours.VideoModel = None,
    negative_prompt: ours.Negative = None,
    size: ours.Size = None,
    frames: ours.Frames = None,
    steps: ours.Steps = None,
    guidance: ours.Guidance = None,
    shift: ours.Shift = None,
    scheduler: ours.Solver = None,
    fps: ours.Fps = None,
    device: ours.VideoDevice = None,
    dtype: ours.VideoDtype = None,
    offload: ours.Offload = None,
    cast_weights: ours.CastWeights = None,
    tile_vae: ours.TileVae = None,
    t5_cpu: ours.T5Cpu = None,
    operators: ours.Operators = None,
    transformer_file: ours.TransformerFile = None,
    vae_file: ours.VaeFile = None,
    text_encoder_file: ours.TextFile = None,
    tokenizer: ours.TokenizerFolder = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print search.json.")] = False,
) -> None:
    """Find the step-cache plan that is best for a model, a size and a number of steps, by measuring.

    `sightline video generate --plan FOLDER/best.json` uses it. With the same command an interrupted search goes on.
    """
    given = dict(locals()) | {"seed": None, "vae_parallel": None}
    task = _task(given)
    try:
        reached = _search(given, task)
    except KeyboardInterrupt:
        again = shlex.join(["sightline", *sys.argv[1:]]) if len(sys.argv) > 1 else "the same command"
        note(f"what was measured is kept in {output}; to go on: {again}")
        raise
    if not reached:
        raise SightlineError(
            f"no plan is {task.goal}; the nearest is {output / 'best.json'}, and {output / 'search.json'} has all; ask "
            f"for less, or give more --rounds and --minutes"
        )


def _task(given: dict[str, Any]) -> Task:
    from sightline.video.parallel.launch import process_count
    from sightline.video.prompts import read_prompts
    from sightline.video.search.goal import Goal
    from sightline.video.search.search import Task

    goal = Goal.read(given["budget"], given["min_psnr"])
    if process_count() > 1:
        raise UsageError(
            "a search runs in one process; run it without torchrun on one card, and use its plan on several"
        )
    rows, bad = read_prompts(given["prompts"])
    if bad:
        raise UsageError(f"line {bad[0].line} of {given['prompts']} cannot be used: {bad[0].reason}")
    for row in rows:
        if row.settings:
            raise UsageError(
                f"line {row.line} of {given['prompts']} sets {next(iter(row.settings))}; a plan is for one setting, so "
                f"give it as an option, and seeds as --seeds"
            )
    return Task.of(
        goal,
        list(dict.fromkeys(row.prompt for row in rows)),
        _seeds(given["seeds"]),
        holdout=given["holdout"],
        rounds=given["rounds"],
        minutes=given["minutes"],
    )


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--seeds must be whole numbers with commas between, not {text!r}") from None
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds must be numbers of 0 or more, each once, not {text!r}")
    return seeds


def _search(given: dict[str, Any], task: Task) -> bool:
    from sightline.cli.video.showing import Waiting
    from sightline.files import only_user
    from sightline.video.pipeline import VideoPipeline
    from sightline.video.search.generations import PipelineRunner
    from sightline.video.search.measure import Measure
    from sightline.video.search.report import conclusion, table, to_json, write_report
    from sightline.video.search.search import identity, search
    from sightline.video.search.state import State

    load = load_options(given, None)
    t5_cpu = load.pop("t5_cpu", False)
    with Waiting("loading the model"):
        pipeline = VideoPipeline.load(**load)
    if t5_cpu:
        pipeline.components.text_encoder.to("cpu")
    settings = settings_of(given)
    runner = PipelineRunner(pipeline, settings)
    options = {
        name: value
        for name, value in load.items()
        if name in ("offload", "cast_weights", "tile_vae", "operators")
    }
    negative = runner.request(task.subjects[0]).negative_prompt
    folder: Path = given["output"]
    state = State(folder, identity(task, runner) | {"negative_prompt": negative, "options": options})
    with only_user(folder, f"another search runs in {folder}; wait for it or choose another output folder"):
        found = search(task, runner, state)
        write_report(found, folder, Measure(runner, state), runner.request(task.subjects[0]).fps)
    if given["as_json"]:
        typer.echo(json.dumps(to_json(found), ensure_ascii=False))
    else:
        typer.echo("\n".join(table(found)))
        typer.echo(conclusion(found))
        typer.echo(
            f"{folder / 'best.json'}, {folder / 'search.json'}, {folder / 'front.png'}, {folder / 'report.html'}"
        )
    return found.reached
