"""sightline merge: parse, merge, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    adapter: Annotated[Path, typer.Option("--adapter", help="The PEFT adapter folder (LoRA or rsLoRA).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; absent or empty.")],
    model: Annotated[
        Path | None,
        typer.Option("--model", help="The base model's folder; without it, what the adapter names."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run base + adapter and the result and compare their logits.")
    ] = False,
    max_shard_size: Annotated[str, typer.Option(help="Largest size of a weight file.")] = "5GB",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Fold a LoRA adapter into its base model.

    Example:  sightline merge --model BASE --adapter runs/lora -o merged --verify
    """
    from sightline.checkpoints.adapter import base_of
    from sightline.checkpoints.merge import describe, merge
    from sightline.progress import size

    base = base_of(adapter) if model is None else model
    report = merge(base, adapter, output, verify=verify, max_shard_size=max_shard_size)
    if as_json:
        typer.echo(json.dumps(describe(report)))
        return
    typer.echo(
        f"{report.output}: {report.adapted} tensors summed, {report.replaced} replaced, {report.copied} as "
        f"in the base; {size(report.bytes)} in {report.seconds:.1f} s"
    )
    if report.untied:
        typer.echo(
            "Embedding and head were one tensor and are two now: the adapter changes only one of them."
        )
    if report.largest_difference is not None and report.adapter_moved is not None:
        typer.echo(
            f"Logits, in float32: the merged model differs from base + adapter by at most "
            f"{report.largest_difference:.3g}, the base alone by {report.adapter_moved:.3g}."
        )
