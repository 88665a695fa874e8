"""sightline convert: parse, convert, print. Every option has MindSpeed-MM's spelling beside ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from sightline.cli.convert_options import (
    AsJson,
    AudioPp,
    AudioTp,
    Auto,
    Canonical,
    CanonicalTheirs,
    DryRun,
    Experts,
    HfDir,
    MaxShard,
    MmSource,
    Names,
    NewKeys,
    Pp,
    PpLlm,
    PpVit,
    Prefix,
    Resume,
    SourceLlm,
    SourceTp,
    SourceVit,
    Tp,
    Trust,
    Verify,
    VitOnly,
    VitTp,
    architecture,
    expected_of,
    layout_of,
    refuse_cuts_of_wan,
    refuse_foreign,
    refuse_prefix,
    truth,
    wan_stages,
)
from sightline.errors import UsageError

if TYPE_CHECKING:
    from sightline.checkpoints.megatron.output import ConversionReport, Run


class Converters(TyperGroup):
    """Also takes MindSpeed-MM's `Qwen2_5_VLConverter hf_to_mm`, whose first word the folder's config.json tells."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if len(args) > 1 and args[0] in ("Qwen2VLConverter", "Qwen2_5_VLConverter", "WanConverter"):
            args = args[1:]
        return super().resolve_command(ctx, [args[0].replace("_", "-"), *args[1:]] if args else args)


app = typer.Typer(
    cls=Converters,
    add_completion=False,
    no_args_is_help=True,
    help="Convert weights between Hugging Face and MindSpeed-MM, tensor by tensor.",
)


@app.command("hf-to-mm")
def hf_to_mm(
    hf_dir: HfDir,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", "--mm-dir", "--cfg.mm_dir", help="The folder to write; absent or empty."
        ),
    ],
    tp: Tp = 1,
    vit_tp: VitTp = 0,
    pp_llm: PpLlm = None,
    pp_vit: PpVit = None,
    pp: Pp = None,
    auto: Auto = False,
    canonical: Canonical = False,
    canonical_theirs: CanonicalTheirs = None,
    verify: Verify = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    experts: Experts = 1,
    audio_pp: AudioPp = None,
    audio_tp: AudioTp = 0,
    vit_only: VitOnly = None,
    trust: Trust = None,
    new_keys: NewKeys = None,
    prefix: Prefix = None,
) -> None:
    """Cut a Hugging Face model into the files that MindSpeed-MM trains from.

    Example:  sightline convert hf-to-mm --hf-dir Qwen2.5-VL-7B -o mm --pp-llm 12,16 --pp-vit 32,0 --tp 1
    """
    from sightline.checkpoints.megatron import check, convert, wan, wan_convert

    refuse_foreign(experts, audio_pp, audio_tp, vit_only, trust, prefix)
    run, apart = _run(resume, dry_run), canonical or truth(canonical_theirs)
    if wan.is_wan(hf_dir):
        refuse_cuts_of_wan(tp, vit_tp, pp_vit, apart)
        stages = wan_stages(wan.open_wan(hf_dir)[1], pp or pp_llm, auto)
        report = wan_convert.wan_hf_to_mm(hf_dir, output, stages, run)
        if verify and not dry_run:
            check.verify_wan(hf_dir, output)
    else:
        layout = layout_of(
            architecture(hf_dir), tp, vit_tp, pp_llm, pp_vit, pp=pp, auto=auto, canonical=apart
        )
        report = convert.hf_to_mm(hf_dir, output, layout, run)
        if verify and not dry_run:
            check.verify(hf_dir, output)
    _print(report, as_json, dry_run, verified=verify)


@app.command("mm-to-hf")
def mm_to_hf(
    mm_dir: MmSource,
    hf_dir: Annotated[
        Path,
        typer.Option(
            "--hf-dir",
            "--cfg.hf_config.hf_dir",
            help="The model's original folder, for its config.json, tokenizer and processor.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", "--cfg.save_hf_dir", help="The folder to write; absent or empty."),
    ],
    tp: Annotated[
        int | None, typer.Option("--tp", "--cfg.parallel_config.tp_size", min=1, help="Checked, if given.")
    ] = None,
    vit_tp: VitTp = 0,
    pp_llm: PpLlm = None,
    pp_vit: PpVit = None,
    names: Names = None,
    max_shard_size: MaxShard = "5GB",
    verify: Verify = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    canonical_theirs: CanonicalTheirs = None,
    experts: Experts = 1,
    audio_pp: AudioPp = None,
    audio_tp: AudioTp = 0,
    trust: Trust = None,
    new_keys: NewKeys = None,
    prefix: Prefix = None,
) -> None:
    """Put a checkpoint of MindSpeed-MM together as a Hugging Face model; its layout is read off its files.

    Example:  sightline convert mm-to-hf --mm-dir mm --hf-dir Qwen2.5-VL-7B -o hf
    """
    from sightline.checkpoints.megatron import check, convert, wan, wan_convert
    from sightline.checkpoints.shards import parse_size

    refuse_foreign(experts, audio_pp, audio_tp, None, trust, prefix)
    run, limit = _run(resume, dry_run), parse_size(max_shard_size)
    apart = None if canonical_theirs is None else truth(canonical_theirs)
    if wan.is_wan(hf_dir):
        refuse_cuts_of_wan(tp, vit_tp, pp_vit, bool(apart))
        report = wan_convert.wan_mm_to_hf(mm_dir, hf_dir, output, max_shard_bytes=limit, run=run)
        if verify and not dry_run:
            check.verify_wan(output, mm_dir)
    else:
        report = convert.mm_to_hf(
            mm_dir,
            hf_dir,
            output,
            names=_names(names, new_keys, "old"),
            max_shard_bytes=limit,
            expected=expected_of(tp, vit_tp, pp_llm, pp_vit, apart),
            run=run,
        )
        if verify and not dry_run:
            check.verify(output, mm_dir)
    _print(report, as_json, dry_run, verified=verify)


@app.command("resplit")
def resplit(
    source: Annotated[
        Path, typer.Option("--mm-dir", "--source-dir", "--cfg.source_dir", help="The checkpoint to read.")
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", "--target-dir", "--cfg.target_dir", help="The folder to write; absent or empty."
        ),
    ],
    tp: Annotated[
        int,
        typer.Option("--tp", "--cfg.target_parallel_config.tp_size", min=1, help="Tensor-parallel ranks."),
    ] = 1,
    vit_tp: Annotated[
        int,
        typer.Option(
            "--vit-tp", "--cfg.target_parallel_config.vit_tp_size", min=0, help="Of the tower; 0: --tp."
        ),
    ] = 0,
    pp_llm: Annotated[
        str | None,
        typer.Option(
            "--pp-llm", "--cfg.target_parallel_config.llm_pp_layers", help="As in hf-to-mm, of the result."
        ),
    ] = None,
    pp_vit: Annotated[
        str | None,
        typer.Option(
            "--pp-vit", "--cfg.target_parallel_config.vit_pp_layers", help="As in hf-to-mm, of the result."
        ),
    ] = None,
    pp: Pp = None,
    auto: Auto = False,
    hf_dir: Annotated[
        Path | None, typer.Option("--hf-dir", help="The model's folder, for its config.json.")
    ] = None,
    verify: Verify = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    source_tp: SourceTp = None,
    source_llm: SourceLlm = None,
    source_vit: SourceVit = None,
) -> None:
    """Cut a checkpoint of MindSpeed-MM anew, for other ranks. How it is cut now is read off its files.

    Example:  sightline convert resplit --mm-dir mm -o mm-pp1 --pp-llm 28 --pp-vit 32
    """
    from sightline.checkpoints.megatron import check, convert, wan, wan_convert
    from sightline.checkpoints.megatron.detect import architecture_of, is_wan
    from sightline.checkpoints.megatron.files import MegatronFiles

    run = _run(resume, dry_run)
    files = MegatronFiles(source)
    if is_wan(files):
        refuse_cuts_of_wan(tp, vit_tp, pp_vit, False)
        stages = wan_stages(wan.stages_of(files).total, pp or pp_llm, auto)
        report = wan_convert.wan_resplit(source, output, stages, run)
        if verify and not dry_run:
            check.verify_wan_resplit(source, output)
    else:
        model = architecture_of(files) if hf_dir is None else architecture(hf_dir)
        layout = layout_of(model, tp, vit_tp, pp_llm, pp_vit, pp=pp, auto=auto)
        expected = expected_of(source_tp, 0, source_llm, source_vit)
        report = convert.resplit(source, output, layout, template=hf_dir, expected=expected, run=run)
        if verify and not dry_run:
            check.verify_resplit(source, output, hf_dir)
    _print(report, as_json, dry_run, verified=verify)


@app.command("lora-hf-to-mm")
def lora_hf_to_mm(
    adapter: Annotated[
        Path, typer.Option("--adapter", "--hf-dir", "--cfg.hf_config.hf_dir", help="The PEFT adapter folder.")
    ],
    model: Annotated[Path, typer.Option("--model", help="The base model's folder, for its config.json.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", "--mm-dir", "--cfg.mm_dir", help="The folder to write; absent or empty."
        ),
    ],
    tp: Tp = 1,
    vit_tp: VitTp = 0,
    pp_llm: PpLlm = None,
    pp_vit: PpVit = None,
    pp: Pp = None,
    auto: Auto = False,
    canonical: Canonical = False,
    canonical_theirs: CanonicalTheirs = None,
    verify: Verify = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    new_keys: NewKeys = None,
    prefix: Prefix = None,
) -> None:
    """Cut a PEFT adapter for MindSpeed-MM's canonical mode.

    Example:  sightline convert lora-hf-to-mm --adapter runs/lora --model BASE -o mm-lora --canonical
    """
    from sightline.checkpoints.megatron import check
    from sightline.checkpoints.megatron.lora_convert import lora_hf_to_mm as convert

    refuse_prefix(prefix)
    truth(new_keys)  # names of both generations are read
    apart = canonical or truth(canonical_theirs)
    layout = layout_of(architecture(model), tp, vit_tp, pp_llm, pp_vit, pp=pp, auto=auto, canonical=apart)
    report, settings = convert(adapter, model, output, layout, _run(resume, dry_run))
    if verify and not dry_run:
        check.verify_lora(adapter, output, model, layout)
    _print(report, as_json, dry_run, verified=verify)
    if not as_json:
        typer.echo(f"Train with --lora-r {settings.get('r')} --lora-alpha {settings.get('lora_alpha')}.")


@app.command("lora-mm-to-hf")
def lora_mm_to_hf(
    mm_dir: MmSource,
    model: Annotated[
        Path,
        typer.Option(
            "--model",
            "--hf-dir",
            "--cfg.hf_config.hf_dir",
            help="The base model's folder, for its config.json.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", "--cfg.save_hf_dir", help="The folder to write; absent or empty."),
    ],
    lora_alpha: Annotated[
        float | None, typer.Option("--lora-alpha", help="That of the training; the files do not hold it.")
    ] = None,
    tp: Tp = 1,
    vit_tp: VitTp = 0,
    pp_llm: PpLlm = None,
    pp_vit: PpVit = None,
    names: Names = None,
    verify: Verify = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    canonical_theirs: CanonicalTheirs = None,
    new_keys: NewKeys = None,
    prefix: Prefix = None,
) -> None:
    """Put an adapter of MindSpeed-MM together as a PEFT folder, with its adapter_config.json.

    Example:  sightline convert lora-mm-to-hf --mm-dir mm-lora --model BASE -o lora --lora-alpha 16
    """
    from sightline.checkpoints.megatron import check
    from sightline.checkpoints.megatron.lora_convert import lora_mm_to_hf as convert

    refuse_prefix(prefix)
    if canonical_theirs is not None and not truth(canonical_theirs):
        raise UsageError("LoRA can only be converted in MindSpeed-MM's canonical mode")
    layout = layout_of(architecture(model), tp, vit_tp, pp_llm, pp_vit, canonical=True)
    style = _names(names, new_keys, "new")
    report = convert(mm_dir, model, output, layout, alpha=lora_alpha, names=style, run=_run(resume, dry_run))
    if verify and not dry_run:
        check.verify_lora(output, mm_dir, model, layout)
    _print(report, as_json, dry_run, verified=verify)


def _names(given: str | None, new_keys: str | None, otherwise: str) -> str:
    """Which tensor names to write: as --names says, else as MindSpeed-MM's option."""
    if given not in (None, "old", "new"):
        raise UsageError(f"--names is {given!r}; it is old or new")
    if given is None and new_keys is not None:
        return "new" if truth(new_keys) else "old"
    return given or otherwise


def _run(resume: bool, dry_run: bool) -> Run:
    from sightline.checkpoints.megatron.output import Run

    return Run(resume, dry_run)


def _print(report: ConversionReport, as_json: bool, dry_run: bool, verified: bool = False) -> None:
    from sightline.progress import size

    if as_json:
        typer.echo(json.dumps({**report.__dict__, "output": str(report.output), "written": not dry_run}))
        return
    verb = "would hold" if dry_run else "holds"
    files = f"{report.files} file{'s' if report.files > 1 else ''}"
    typer.echo(
        f"{report.output} {verb} {report.tensors} tensors in {files}, {size(report.bytes)}: {report.layout}"
    )
    if verified and not dry_run:
        typer.echo("Read back and turned round, every number is the original's.")
