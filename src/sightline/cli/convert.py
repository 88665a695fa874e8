"""sightline convert: parse, convert, print. Every option has MindSpeed-MM's spelling beside ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from sightline.errors import UsageError

if TYPE_CHECKING:
    from sightline.checkpoints.megatron.layout import Layout
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

HfDir = Annotated[
    Path, typer.Option("--hf-dir", "--cfg.hf_config.hf_dir", help="The Hugging Face model's folder.")
]
MmSource = Annotated[
    Path, typer.Option("--mm-dir", "--cfg.mm_dir", help="The checkpoint of MindSpeed-MM to read.")
]
Output = Annotated[Path, typer.Option("--output", "-o", help="The folder to write; absent or empty.")]
Tp = Annotated[
    int, typer.Option("--tp", "--cfg.parallel_config.tp_size", min=1, help="Tensor-parallel ranks.")
]
VitTp = Annotated[
    int,
    typer.Option("--vit-tp", "--cfg.parallel_config.vit_tp_size", min=0, help="Those of the tower; 0: --tp."),
]
PpLlm = Annotated[
    str | None,
    typer.Option(
        "--pp-llm",
        "--cfg.parallel_config.llm_pp_layers",
        help="Layers of the language model on each pipeline rank: 12,16; [[4,4],[4,4]] with virtual stages.",
    ),
]
PpVit = Annotated[
    str | None,
    typer.Option(
        "--pp-vit", "--cfg.parallel_config.vit_pp_layers", help="Layers of the vision tower, likewise: 32,0."
    ),
]
Pp = Annotated[
    str | None,
    typer.Option("--pp", help="With --auto the number of pipeline ranks; for Wan the blocks of each: 15,15."),
]
Auto = Annotated[bool, typer.Option("--auto", help="Balance the layers over --pp ranks by their bytes.")]
Canonical = Annotated[
    bool, typer.Option("--canonical", help="Queries, keys, values, gate and up stay apart.")
]
CanonicalTheirs = Annotated[
    str | None, typer.Option("--cfg.common_model_config.enable_canonical_hf_struct", hidden=True)
]
MaxShard = Annotated[str, typer.Option(help="Largest size of a weight file.")]
Verify = Annotated[bool, typer.Option("--verify", help="Read the result back and compare every number.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted conversion.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything, write nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]
# Of MindSpeed-MM: what says nothing here, or only one thing.
Experts = Annotated[int, typer.Option("--cfg.parallel_config.ep_size", hidden=True)]
AudioPp = Annotated[str | None, typer.Option("--cfg.parallel_config.audio_pp_layers", hidden=True)]
AudioTp = Annotated[int, typer.Option("--cfg.parallel_config.audio_tp_size", hidden=True)]
VitOnly = Annotated[str | None, typer.Option("--cfg.save_vit_only", hidden=True)]
Trust = Annotated[str | None, typer.Option("--cfg.trust_remote_code", hidden=True)]
NewKeys = Annotated[
    str | None, typer.Option("--cfg.common_model_config.new_transformers_weight_key", hidden=True)
]
Prefix = Annotated[str | None, typer.Option("--cfg.common_model_config.model_prefix", hidden=True)]


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

    _refuse_foreign(experts, audio_pp, audio_tp, vit_only, trust, prefix)
    run = _run(resume, dry_run)
    if wan.is_wan(hf_dir):
        report = wan_convert.wan_hf_to_mm(hf_dir, output, _wan_stages(hf_dir, pp or pp_llm, auto), run)
        if verify and not dry_run:
            check.verify_wan(hf_dir, output)
    else:
        layout = _layout(hf_dir, tp, vit_tp, pp_llm, pp_vit, pp, auto, canonical or _truth(canonical_theirs))
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
    names: Annotated[
        str, typer.Option(help="Tensor names: old (model.layers, visual) or new (model.language_model).")
    ] = "old",
    max_shard_size: MaxShard = "5GB",
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
    from sightline.checkpoints.megatron import convert, wan, wan_convert
    from sightline.checkpoints.shards import parse_size

    _refuse_foreign(experts, audio_pp, audio_tp, None, trust, prefix)
    if names not in ("old", "new"):
        raise UsageError(f"--names is {names!r}; it is old or new")
    run, limit = _run(resume, dry_run), parse_size(max_shard_size)
    if wan.is_wan(hf_dir):
        report = wan_convert.wan_mm_to_hf(mm_dir, hf_dir, output, max_shard_bytes=limit, run=run)
    else:
        expected = None
        if pp_llm is not None or pp_vit is not None:
            expected = _layout(hf_dir, tp or 1, vit_tp, pp_llm, pp_vit, None, False, _truth(canonical_theirs))
        report = convert.mm_to_hf(
            mm_dir,
            hf_dir,
            output,
            names="new" if _truth(new_keys) else names,
            max_shard_bytes=limit,
            expected=expected,
            run=run,
        )
    _print(report, as_json, dry_run)


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
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    source_tp: Annotated[int, typer.Option("--cfg.source_parallel_config.tp_size", hidden=True)] = 1,
    source_llm: Annotated[
        str | None, typer.Option("--cfg.source_parallel_config.llm_pp_layers", hidden=True)
    ] = None,
    source_vit: Annotated[
        str | None, typer.Option("--cfg.source_parallel_config.vit_pp_layers", hidden=True)
    ] = None,
) -> None:
    """Cut a checkpoint of MindSpeed-MM anew, for other ranks. How it is cut now is read off its files.

    Example:  sightline convert resplit --mm-dir mm -o mm-pp1 --pp-llm 28 --pp-vit 32
    """
    from sightline.checkpoints.megatron import convert, wan_convert
    from sightline.checkpoints.megatron.detect import architecture_of, is_wan
    from sightline.checkpoints.megatron.files import MegatronFiles
    from sightline.checkpoints.megatron.stages import Stages

    run = _run(resume, dry_run)
    files = MegatronFiles(source)
    if is_wan(files):
        if pp is None and pp_llm is None:
            raise UsageError("--pp is needed: the blocks of each pipeline rank, like 15,15")
        stages = Stages.parse(pp or pp_llm or "", "--pp")
        _print(wan_convert.wan_resplit(source, output, stages, run), as_json, dry_run)
        return
    model = architecture_of(files) if hf_dir is None else None
    layout = _layout(hf_dir, tp, vit_tp, pp_llm, pp_vit, pp, auto, False, model)
    report = convert.resplit(source, output, layout, template=hf_dir, run=run)
    _print(report, as_json, dry_run)


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
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    new_keys: NewKeys = None,
    prefix: Prefix = None,
) -> None:
    """Cut a PEFT adapter for MindSpeed-MM's canonical mode.

    Example:  sightline convert lora-hf-to-mm --adapter runs/lora --model BASE -o mm-lora --canonical
    """
    from sightline.checkpoints.megatron.lora_convert import lora_hf_to_mm as convert

    layout = _layout(model, tp, vit_tp, pp_llm, pp_vit, pp, auto, canonical or _truth(canonical_theirs))
    report, settings = convert(adapter, model, output, layout, _run(resume, dry_run))
    _print(report, as_json, dry_run)
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
    from sightline.checkpoints.megatron.lora_convert import lora_mm_to_hf as convert

    layout = _layout(model, tp, vit_tp, pp_llm, pp_vit, None, False, True)
    report = convert(mm_dir, model, output, layout, alpha=lora_alpha, run=_run(resume, dry_run))
    _print(report, as_json, dry_run)


def _layout(
    folder: Path | None,
    tp: int,
    vit_tp: int,
    pp_llm: str | None,
    pp_vit: str | None,
    pp: str | None,
    auto: bool,
    canonical: bool,
    model: Any = None,
) -> Layout:
    """The layout that the options ask for; without any list, one pipeline rank."""
    from sightline.checkpoints.megatron.architecture import Architecture
    from sightline.checkpoints.megatron.layout import Layout
    from sightline.checkpoints.megatron.planning import balance
    from sightline.checkpoints.megatron.stages import Pipeline, Stages
    from sightline.checkpoints.store import read_config

    if model is None:
        assert folder is not None
        model = Architecture.of(read_config(folder), str(folder))
    if auto:
        pipeline = balance(model, _ranks(pp), pp_llm or pp_vit)
        text, vision = ([*stages.flat] for stages in (pipeline.text, pipeline.vision))
        typer.echo(f"model.json: text_decoder.pipeline_num_layers {text}", err=True)
        typer.echo(f"model.json: image_encoder.vision_encoder.pipeline_num_layers {vision}", err=True)
    else:
        if pp is not None:
            raise UsageError("--pp needs --auto; without it give --pp-llm and --pp-vit")
        text_stages = Stages.parse(pp_llm, "--pp-llm") if pp_llm else Stages(((model.layers,),))
        vision_stages = Stages.parse(pp_vit, "--pp-vit") if pp_vit else None
        if vision_stages is None:
            vision_stages = Stages(_all_first(text_stages, model.vision_layers))
        pipeline = Pipeline(text_stages, vision_stages)
    return Layout(pipeline, tp, vit_tp or tp, canonical)


def _all_first(text: Any, layers: int) -> tuple[tuple[int, ...], ...]:
    """All layers of the tower on the first stage, where --pp-vit is not given."""
    rows = [[0] * text.ranks for _ in range(text.chunks)]
    rows[0][0] = layers
    return tuple(map(tuple, rows))


def _wan_stages(folder: Path, pp: str | None, auto: bool) -> Any:
    from sightline.checkpoints.megatron import wan
    from sightline.checkpoints.megatron.planning import even
    from sightline.checkpoints.megatron.stages import Stages

    _, layers = wan.open_wan(folder)
    if auto:
        return even(layers, _ranks(pp))
    return Stages.parse(pp, "--pp") if pp else Stages(((layers,),))


def _ranks(pp: str | None) -> int:
    if pp is None or not pp.isdecimal() or int(pp) < 1:
        raise UsageError("--auto needs --pp, the number of pipeline ranks")
    return int(pp)


def _refuse_foreign(
    experts: int,
    audio_pp: str | None,
    audio_tp: int,
    vit_only: str | None,
    trust: str | None,
    prefix: str | None,
) -> None:
    """What MindSpeed-MM's converter can be told and has no meaning, or another one, here."""
    if experts != 1:
        raise UsageError(
            f"ep_size is {experts}, but Qwen2-VL, Qwen2.5-VL and Wan have no experts; leave it out"
        )
    if audio_tp not in (0, 1) or (audio_pp or "").strip("[] 0,"):
        raise UsageError("audio_pp_layers and audio_tp_size are of models with sound; leave them out")
    if _truth(vit_only):
        raise UsageError("save_vit_only is not built; convert the whole model and take the tower's files")
    if _truth(trust):
        raise UsageError("trust_remote_code is not needed: nothing of a checkpoint is run; leave it out")
    if prefix:
        raise UsageError("model_prefix is not needed: names of every generation are read; leave it out")


def _truth(text: str | None) -> bool:
    if text is None or text.lower() in ("false", "0", "no", ""):
        return False
    if text.lower() in ("true", "1", "yes"):
        return True
    raise UsageError(f"{text!r} is neither true nor false")


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
