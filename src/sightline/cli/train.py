"""`sightline train`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from sightline.training.config import TrainConfig

_HELP = """Fine-tune a model as a YAML file says.

Fields can be given or overridden as key=value; a dot reaches into a section. Running the same command again goes on
from the last whole checkpoint.

Example: sightline train examples/lora.yaml model=Qwen2.5-VL-7B-Instruct data=train.jsonl lora.r=16
"""


def command(
    config: Annotated[
        Optional[str],  # noqa: UP045 - typer reads this at run time on Python 3.10
        typer.Argument(
            help="YAML file, or the first key=value where everything is given on the command line."
        ),
    ] = None,
    overrides: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="key=value, such as lora.r=16 or max_pixels=802816."),
    ] = None,
    preview: Annotated[
        int, typer.Option(min=0, help="Print this many samples as the model sees them, and stop.")
    ] = 0,
    print_config: Annotated[bool, typer.Option(help="Print the resolved configuration, and stop.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    from sightline.training.config import load_config

    given = list(overrides or [])
    path = config
    if config is not None and "=" in config and not Path(config).exists():
        given, path = [config, *given], None
    resolved = load_config(path, given)
    if print_config:
        _print_config(resolved)
    elif preview:
        _print_samples(resolved, preview)
    else:
        _train(resolved, json_output)


command.__doc__ = _HELP


def _print_config(config: TrainConfig) -> None:
    import yaml

    typer.echo(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False).rstrip())


def _print_samples(config: TrainConfig, count: int) -> None:
    from rich.console import Console

    from sightline.models.processor import load_processor
    from sightline.training.dataset import read_samples
    from sightline.training.preview import preview

    processor = load_processor(config.model, max_pixels=config.max_pixels, min_pixels=config.min_pixels)
    samples = read_samples(
        config.data,
        processor,
        media_root=config.media_root,
        max_samples=count,
        max_length=config.max_length,
        on_bad_row=config.on_bad_row,
    )
    console = Console()
    for sample in samples:
        console.print(preview(sample, processor))
        console.print()


def _train(config: TrainConfig, json_output: bool) -> None:
    import json
    import os
    from dataclasses import asdict

    from sightline.training.run import train

    result = train(config)
    if os.environ.get("RANK", "0") != "0":
        return  # under torchrun one process speaks for all
    if json_output:
        typer.echo(json.dumps(asdict(result)))
        return
    loss = f"loss {result.final_loss:.4f}"
    if result.eval_loss is not None:
        loss += f", validation loss {result.eval_loss:.4f}"
    typer.echo(
        f"{result.steps} steps in {result.train_seconds:.0f} s, {result.samples_per_second:.1f} samples/s, {loss}"
    )
    typer.echo(f"written to {result.output}")
