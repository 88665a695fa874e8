"""sightline diff: compare weights, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    first: Annotated[Path, typer.Argument(help="A folder or file of safetensors.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
    limit: Annotated[int, typer.Option(min=0, help="Most tensors of each list; 0 is all.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say which tensors of two models differ, and by how much. Leaves with 0 if none does, else with 1.

    Example:  sightline diff base merged
    """
    from sightline.checkpoints.difference import difference, plain

    found = difference(first, second)
    if as_json:
        typer.echo(json.dumps(plain(found)))
        raise typer.Exit(0 if found.same else 1)
    most = limit or None
    for told in found.differing[:most]:
        typer.echo(
            f"{told.name}: largest {told.largest:.3g}, relative {told.relative:.3g}, {told.numbers:,} numbers"
        )
    _rest(len(found.differing), most, "differ")
    for name, ours, theirs in found.reshaped[:most]:
        typer.echo(f"{name}: {ours} against {theirs}")
    _rest(len(found.reshaped), most, "have another shape or type")
    for names, where in ((found.only_first, first), (found.only_second, second)):
        for name in names[:most]:
            typer.echo(f"{name}: only in {where}")
        _rest(len(names), most, f"are only in {where}")
    typer.echo(
        f"{found.equal} equal bit for bit, {len(found.differing)} differ, {len(found.reshaped)} of another shape or "
        f"type, {len(found.only_first)} only in the first, {len(found.only_second)} only in the second"
    )
    raise typer.Exit(0 if found.same else 1)


def _rest(count: int, most: int | None, words: str) -> None:
    if most is not None and count > most:
        typer.echo(f"and {count - most} more {words} (--limit 0 shows all)")
