"""`sightline video tune`: which attention kernel is the fastest for a shape."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline.errors import UsageError

if TYPE_CHECKING:
    from sightline.hardware.operators.dense_attention import Measurement

EXAMPLE = "Example: sightline video tune --shape 1x12x32760x128 --keys 512 --dtype bf16"

_MASKS = {"none": "", "keys": "k", "samples": "bk", "full": "qk"}


def command(
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="BxNxSxD",
            help="Batch, heads, tokens and head size of the queries. Without it, what was measured is listed.",
        ),
    ] = None,
    keys: Annotated[
        int | None, typer.Option(min=1, help="Tokens of the keys; as many as of the queries without it.")
    ] = None,
    kv_heads: Annotated[
        int | None, typer.Option(min=1, help="Heads of the keys; as many as of the queries without it.")
    ] = None,
    mask: Annotated[
        str,
        typer.Option(
            help="none, keys (one for all), samples (keys of each sample), full (queries and keys)."
        ),
    ] = "none",
    head_first: Annotated[bool, typer.Option("--head-first", help="Tensors are [B, N, S, D].")] = False,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="Choose among kernels of fewer bits too.")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Measure even what is known.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, npu, cuda:1, ...")] = None,
    dtype: Annotated[str, typer.Option(help="auto, bf16, fp16 or fp32.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the measurement as JSON.")] = False,
) -> None:
    """Time the attention kernels at a shape, hold each against the definition, and keep the choice.

    `attention_forward` takes what is chosen here for calls of the same shape, dtype and kind of mask.
    """
    from sightline.hardware import accelerator
    from sightline.hardware.operators.dense_attention import Problem, measured, measurements
    from sightline.hardware.operators.dense_attention.measure import product_rate

    if mask not in _MASKS:
        raise UsageError(f"--mask {mask!r} is not one of {', '.join(_MASKS)}")
    found = accelerator.find(device)
    place, kind = found.torch_device, found.kind
    if shape is None:
        _print_all(measurements(place, kind), approximate, as_json)
        return
    precision = accelerator.dtype_from_name(dtype, found)
    problem = Problem.from_shape(
        shape, precision, keys=keys, kv_heads=kv_heads, mask=_MASKS[mask], head_first=head_first
    )
    measurement = measured(problem, place, kind, again=again)
    rate = product_rate(place, precision)
    if as_json:
        typer.echo(json.dumps(_plain(measurement, approximate, rate)))
        return
    typer.echo(f"{problem.key()} on {found} ({found.name}), {problem.operations / 1e9:.4g} GFLOP")
    _print_table(measurement, approximate, rate)


def _plain(measurement: Measurement, approximate: bool, rate: float | None = None) -> dict[str, Any]:
    best = measurement.best(approximate)
    value = measurement.plain() | {"key": measurement.problem.key()}
    value["chosen"] = None if best is None else {"name": best.name, "layout": best.layout}
    if rate is not None:
        value |= {"operations": measurement.problem.operations, "product_flops": rate}
    for trial in value["trials"]:
        trial["chosen"] = best is not None and asdict(best) == trial
        if rate is not None and trial["seconds"]:
            trial["share_of_product_rate"] = measurement.problem.operations / trial["seconds"] / rate
    return value


def _print_table(measurement: Measurement, approximate: bool, rate: float) -> None:
    best = measurement.best(approximate)
    operations = measurement.problem.operations
    typer.echo(f"  {'kernel':<24}{'layout':<8}{'ms':>10}{'TFLOP/s':>10}{'share':>8}{'error':>10}")
    for trial in measurement.trials:
        line = f"  {trial.name:<24}{trial.layout:<8}"
        if trial.seconds is None:
            typer.echo(f"{line}  {trial.reason}")
            continue
        speed = operations / trial.seconds
        line += f"{trial.seconds * 1e3:>10.4g}{speed / 1e12:>10.3g}{speed / rate:>8.0%}{trial.error:>10.1e}"
        notes = ["chosen"] if trial == best else []
        notes += [] if trial.exact else ["fewer bits, on request"]
        typer.echo(f"{line}  {', '.join(notes)}".rstrip())
    typer.echo(
        f"  share: of the {rate / 1e12:.3g} TFLOP/s of a large matrix product in {measurement.problem.dtype} here; "
        "error: against the definition in float32"
    )
    if best is None:
        typer.echo("  no kernel computes this; attention_forward takes the definition")


def _print_all(known: list[Measurement], approximate: bool, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([_plain(measurement, approximate) for measurement in known]))
        return
    if not known:
        typer.echo("Nothing was measured on this device with these versions yet; give --shape.")
    for measurement in known:
        best = measurement.best(approximate)
        chosen = "the definition"
        if best is not None and best.seconds is not None:
            chosen = f"{best.name} in {best.layout}, {best.seconds * 1e3:.4g} ms"
        typer.echo(f"{measurement.problem.key()}: {chosen} ({measurement.when})")
