"""Options of `sightline convert`, each with MindSpeed-MM's spelling beside ours, and what they say together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sightline.errors import UsageError

if TYPE_CHECKING:
    from sightline.checkpoints.megatron.architecture import Architecture
    from sightline.checkpoints.megatron.layout import Expected, Layout
    from sightline.checkpoints.megatron.stages import Stages

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


SourceTp = Annotated[int | None, typer.Option("--cfg.source_parallel_config.tp_size", min=1, hidden=True)]
SourceLlm = Annotated[str | None, typer.Option("--cfg.source_parallel_config.llm_pp_layers", hidden=True)]
SourceVit = Annotated[str | None, typer.Option("--cfg.source_parallel_config.vit_pp_layers", hidden=True)]
Names = Annotated[
    str | None, typer.Option(help="Tensor names: old (model.layers, visual) or new (model.language_model).")
]


def layout_of(
    model: Architecture,
    tp: int,
    vit_tp: int,
    pp_llm: str | None,
    pp_vit: str | None,
    *,
    pp: str | None = None,
    auto: bool = False,
    canonical: bool = False,
) -> Layout:
    """The layout that the options ask for; without any list, one pipeline rank.

    Raises:
        UsageError: a list cannot be read, or --auto and lists are given.
    """
    from sightline.checkpoints.megatron.layout import Layout
    from sightline.checkpoints.megatron.planning import balance
    from sightline.checkpoints.megatron.stages import Pipeline, Stages

    if auto:
        pipeline = balance(model, _count(pp), pp_llm or pp_vit)
        text, vision = ([*stages.flat] for stages in (pipeline.text, pipeline.vision))
        typer.echo(f"model.json: text_decoder.pipeline_num_layers {text}", err=True)
        typer.echo(f"model.json: image_encoder.vision_encoder.pipeline_num_layers {vision}", err=True)
    else:
        if pp is not None:
            raise UsageError("--pp needs --auto; without it give --pp-llm and --pp-vit")
        text_stages = Stages.parse(pp_llm, "--pp-llm") if pp_llm else Stages(((model.layers,),))
        if pp_llm is None and pp_vit is not None:
            raise UsageError("--pp-vit is given without --pp-llm; give both, with a number for every rank")
        vision_stages = Stages.parse(pp_vit, "--pp-vit") if pp_vit else None
        if vision_stages is None:
            vision_stages = Stages(_all_first(text_stages, model.vision_layers))
        pipeline = Pipeline(text_stages, vision_stages)
    return Layout(pipeline, tp, vit_tp or tp, canonical)


def expected_of(
    tp: int | None, vit_tp: int, pp_llm: str | None, pp_vit: str | None, canonical: bool | None = None
) -> Expected:
    """What the options say of the layout of a checkpoint that is there."""
    from sightline.checkpoints.megatron.layout import Expected
    from sightline.checkpoints.megatron.stages import Stages

    return Expected(
        tp,
        vit_tp or tp,
        Stages.parse(pp_llm, "--pp-llm") if pp_llm else None,
        Stages.parse(pp_vit, "--pp-vit") if pp_vit else None,
        canonical,
    )


def architecture(folder: Path) -> Architecture:
    """Of a model's folder."""
    from sightline.checkpoints.megatron.architecture import Architecture
    from sightline.checkpoints.store import read_config

    return Architecture.of(read_config(folder), str(folder))


def _all_first(text: Any, layers: int) -> tuple[tuple[int, ...], ...]:
    """All layers of the tower on the first stage, where --pp-vit is not given."""
    rows = [[0] * text.ranks for _ in range(text.chunks)]
    rows[0][0] = layers
    return tuple(map(tuple, rows))


def wan_stages(layers: int, pp: str | None, auto: bool) -> Stages:
    """The blocks of each pipeline rank of Wan's transformer; without any list, one rank."""
    from sightline.checkpoints.megatron.planning import even
    from sightline.checkpoints.megatron.stages import Stages

    if auto:
        return even(layers, _count(pp))
    return Stages.parse(pp, "--pp") if pp else Stages(((layers,),))


def refuse_cuts_of_wan(tp: int | None, vit_tp: int, pp_vit: str | None, canonical: bool) -> None:
    """Wan's transformer is not cut over tensor-parallel ranks, and has no tower."""
    for option, given in (
        ("--tp", tp not in (None, 1)),
        ("--vit-tp", vit_tp not in (0, 1)),
        ("--pp-vit", pp_vit is not None),
        ("--canonical", canonical),
    ):
        if given:
            raise UsageError(f"{option} means nothing for Wan, which is cut by --pp alone; leave it out")


def _count(pp: str | None) -> int:
    if pp is None or not pp.isdecimal() or int(pp) < 1:
        raise UsageError("--auto needs --pp, the number of pipeline ranks")
    return int(pp)


def refuse_foreign(
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
    if truth(vit_only):
        raise UsageError("save_vit_only is not built; convert the whole model and take the tower's files")
    if truth(trust):
        raise UsageError("trust_remote_code is not needed: nothing of a checkpoint is run; leave it out")
    refuse_prefix(prefix)


def refuse_prefix(prefix: str | None) -> None:
    """Of names; PEFT's own is written and read without being told."""
    if (prefix or "").strip(".") not in ("", "base_model.model", "null", "None"):
        raise UsageError(
            f"model_prefix {prefix} is not known; names of every generation are read, leave it out"
        )


def truth(text: str | None) -> bool:
    if text is None or text.lower() in ("false", "0", "no", ""):
        return False
    if text.lower() in ("true", "1", "yes"):
        return True
    raise UsageError(f"{text!r} is neither true nor false")
