"""sightline quantize: parse, quantize, print."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    model: Annotated[Path, typer.Option("--model", help="The float model's folder.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; absent or empty.")],
    quantization: Annotated[str, typer.Option("--quantization", help="int8 or int4.")] = "int8",
    group_size: Annotated[
        int | None, typer.Option(help="Weights that share a scale in int4: 32, 64, 128 or 256. [default: 64]")
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option("--skip", metavar="PATTERN", help="Layers to leave as they are, like '*.down_proj'."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run the model and the result and compare their logits.")
    ] = False,
    max_shard_size: Annotated[str, typer.Option(help="Largest size of a weight file.")] = "5GB",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Write a copy of a model with its linear layers in 8 or 4 bit.

    Example:  sightline quantize --model MODEL -o quantized --quantization int8
    """
    from sightline.models.quantization.checkpoint import quantize
    from sightline.progress import size

    report = quantize(
        model, output, quantization, group=group_size, skip=tuple(skip or ()), max_shard_size=max_shard_size
    )
    proof = None
    if verify:
        from sightline.models.quantization.verify import verify as prove

        proof = prove(model, output)
    if as_json:
        values = dataclasses.asdict(report) | ({} if proof is None else dataclasses.asdict(proof))
        typer.echo(json.dumps(values, default=str))
        return
    typer.echo(
        f"{report.output}: {report.int8} layers in 8 bit, {report.int4} in 4 bit, {report.kept} as they were; "
        f"{size(report.bytes_before)} became {size(report.bytes)} in {report.seconds:.1f} s"
    )
    if proof is not None:
        typer.echo(
            f"Next-token distributions against the model's, in float32: mean KL {proof.divergence:.3g}, the "
            f"likeliest token the same at {proof.agreement:.0%} of {proof.positions} positions."
        )
