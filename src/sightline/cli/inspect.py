"""sightline inspect: look into weights, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    path: Annotated[
        Path,
        typer.Argument(help="A model, an adapter, a checkpoint of MindSpeed-MM, or a file of safetensors."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say what is in a folder of weights: architecture, sizes, types, files, ranks. Reads headers only.

    Example:  sightline inspect runs/lora
    """
    from sightline.checkpoints.inspection import Group, inspect
    from sightline.progress import size

    found = inspect(path)
    if as_json:
        typer.echo(json.dumps(found.plain()))
        return

    def line(name: str, group: Group) -> str:
        return (
            f"  {name:<16}{group.tensors:>8,} tensors{group.numbers / 1e6:>14,.2f} M{size(group.bytes):>12}"
        )

    typer.echo(f"{found.path}: {found.kind}" + (f", {found.architecture}" if found.architecture else ""))
    for name, value in found.details.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} x {count}" for key, count in value.items())
        typer.echo(f"  {name:<24}{value}")
    typer.echo("parts")
    for name, group in found.parts.items():
        typer.echo(line(name, group))
    typer.echo("types")
    for name, group in found.dtypes.items():
        typer.echo(line(name, group))
    typer.echo(f"{len(found.files)} file{'s' if len(found.files) != 1 else ''}")
    for name, count in found.files.items():
        typer.echo(f"  {name:<48}{size(count):>12}")
