"""sightline merge: parse, merge, print."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sightline.errors import UsageError

if TYPE_CHECKING:
    from sightline.checkpoints.merge import MergeReport


def command(
    adapter: Annotated[
        list[Path],
        typer.Option("--adapter", help="A PEFT adapter folder (LoRA, rsLoRA, DoRA); several are summed."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The folder to write; absent or empty.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="The base model's folder; without it, what the adapter names."),
    ] = None,
    weight: Annotated[
        list[float] | None,
        typer.Option("--weight", help="How much of each adapter, in their order; 1 each without it."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run base + adapter and the result and compare their logits.")
    ] = False,
    check: Annotated[
        Path | None,
        typer.Option("--check", metavar="MERGED", help="Only compare: a folder that was merged before."),
    ] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest size of a weight file.")] = "5GB",
    device: Annotated[
        str | None, typer.Option(help="Where the sums are made: cpu, cuda, npu; without it the CPU.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted merge.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, write nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Fold LoRA adapters into their base model.

    Example:  sightline merge --model BASE --adapter runs/lora -o merged --verify
    """
    from sightline.checkpoints import merge as merging
    from sightline.checkpoints.adapter import base_of

    base = base_of(adapter[0]) if model is None else model
    if check is not None:
        if output is not None:
            raise UsageError("--check compares a folder that is there; leave -o out")
        proof = merging.check(base, adapter, check, weights=weight or None)
        if as_json:
            typer.echo(json.dumps({"largest_difference": proof.difference, "adapter_moved": proof.moved}))
            return
        _say_proof(proof.difference, proof.moved)
        return
    if output is None:
        raise UsageError("--output is needed: the folder to write")
    report = merging.merge(
        base,
        adapter,
        output,
        weights=weight or None,
        verify=verify,
        max_shard_size=max_shard_size,
        device=device,
        resume=resume,
        dry_run=dry_run,
    )
    if as_json:
        typer.echo(json.dumps({**merging.describe(report), "written": not dry_run}))
        return
    _say(report, dry_run)


def _say(report: MergeReport, dry_run: bool) -> None:
    from sightline.progress import size

    tensors = f"{report.adapted} tensors summed, {report.replaced} replaced, {report.copied} as in the base"
    if dry_run:
        files = f"{report.files} file{'s' if report.files > 1 else ''}"
        typer.echo(f"{report.output} would hold {tensors}; {size(report.bytes)} in {files}")
    else:
        typer.echo(f"{report.output}: {tensors}; {size(report.bytes)} in {report.seconds:.1f} s")
    if report.untied:
        typer.echo(
            "Embedding and head were one tensor and are two now: the adapter changes only one of them."
        )
    if report.largest_difference is not None and report.adapter_moved is not None:
        _say_proof(report.largest_difference, report.adapter_moved)


def _say_proof(difference: float, moved: float) -> None:
    typer.echo(
        f"Logits, in float32: the merged model differs from base + adapter by at most {difference:.3g}, the base "
        f"alone by {moved:.3g}."
    )
