"""`sightline video generate`: parse, make, print."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from sightline.cli.options import Device
from sightline.cli.video import options as ours
from sightline.cli.video import theirs
from sightline.cli.video.showing import Generation, Waiting, one_voice, summary
from sightline.errors import SightlineError, UsageError
from sightline.progress import Progress, note

if TYPE_CHECKING:
    from sightline.video.batch import Batch, Item
    from sightline.video.making import Maker, Order, PlanFor
    from sightline.video.parallel.layout import Layout
    from sightline.video.pipeline import VideoPipeline
    from sightline.video.request import Request
    from sightline.video.writing.record import Record

EXAMPLE = 'Example: sightline video generate --model Wan2.1-T2V-1.3B-Diffusers --prompt "a cat" --size 832x480 -o cat.mp4'
_BUILT_IN_PROMPT = "a three moving left and a seven moving up"  # what the built-in model has learned to show
_CACHE = {"step_start": 12, "step_interval": 4, "step_end": 37}  # MindIE's defaults


class Command(TyperCommand):
    """Takes --offload-model with a value and without one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, ours.with_bare_offload(args))


def command(
    prompt: ours.Prompt = None,
    model: ours.VideoModel = None,
    output: ours.Output = None,
    negative_prompt: ours.Negative = None,
    size: ours.Size = None,
    frames: ours.Frames = None,
    steps: ours.Steps = None,
    guidance: ours.Guidance = None,
    shift: ours.Shift = None,
    scheduler: ours.Solver = None,
    seed: ours.Seed = None,
    fps: ours.Fps = None,
    again: ours.From = None,
    prompts: ours.Prompts = None,
    num_videos: ours.NumVideos = 1,
    overwrite: ours.Overwrite = False,
    save_frames: ours.SaveFrames = False,
    crf: ours.Crf = None,
    as_json: ours.AsJson = False,
    device: Device = None,
    dtype: ours.VideoDtype = None,
    offload: ours.Offload = None,
    cast_weights: ours.CastWeights = None,
    tile_vae: ours.TileVae = None,
    t5_cpu: ours.T5Cpu = None,
    operators: ours.Operators = None,
    transformer_file: ours.TransformerFile = None,
    vae_file: ours.VaeFile = None,
    text_encoder_file: ours.TextFile = None,
    tokenizer: ours.TokenizerFolder = None,
    plan: ours.PlanFile = None,
    plan_anyway: ours.PlanAnyway = False,
    use_attentioncache: ours.AttentionCache = False,
    block_cache: ours.BlockCache = False,
    start_step: ours.StartStep = None,
    attentioncache_interval: ours.Interval = None,
    end_step: ours.EndStep = None,
    block_start: ours.BlockStart = None,
    block_end: ours.BlockEnd = None,
    ulysses_size: ours.Ulysses = None,
    cfg_size: ours.Cfg = None,
    vae_parallel: ours.VaeParallel = None,
    task: theirs.Task = None,
    dit_fsdp: theirs.DitFsdp = False,
    t5_fsdp: theirs.T5Fsdp = False,
    convert_model_dtype: theirs.ConvertDtype = False,
    attentioncache_ratio: theirs.Ratio = None,
    ring_size: theirs.Ring = 1,
    tp_size: theirs.TensorParallel = 1,
    use_prompt_extend: theirs.Extend = False,
    prompt_extend_method: theirs.ExtendMethod = None,
    prompt_extend_model: theirs.ExtendModel = None,
    prompt_extend_target_lang: theirs.ExtendLanguage = None,
    fp8: theirs.Fp8 = False,
    use_rainfusion: theirs.Rainfusion = False,
    sparsity: theirs.Sparsity = None,
    sparse_start_step: theirs.SparseStart = None,
    quant_mode: theirs.QuantMode = 0,
    quant_dit_path: theirs.QuantPath = None,
    image: theirs.Image = None,
    first_frame: theirs.FirstFrame = None,
    last_frame: theirs.LastFrame = None,
) -> None:
    """Make a video of a prompt, or one of each prompt in a file.

    Without --model it is the small built-in model of moving digits. The options of Wan2.1's own generate.py work too.
    """
    given = dict(locals())
    with one_voice():
        theirs.answer_theirs(task, given)
        _generate(given)


def _generate(given: dict[str, Any]) -> None:
    from sightline.video.parallel.launch import joined, leads
    from sightline.video.writing.record import Record

    record = None if given["again"] is None else Record.read(given["again"])
    settings = _settings(given)
    load = _load_options(given, record)
    _check_usage(given, record)
    if given["output"] is not None and given["prompts"] is None and leads():
        _check_target(given, given["output"])
    sizes = _sizes(given, record)
    with joined(*sizes, given["device"] or load.get("device")) as layout:
        maker = _maker(given, record, load, layout)
        if given["prompts"] is None:
            _one(given, maker, record, settings)
        else:
            _many(given, maker, settings)


def _one(given: dict[str, Any], maker: Maker, record: Record | None, settings: dict[str, Any]) -> None:
    order = _order(given, maker, record, settings)
    output = given["output"]
    if output is None:
        output = _default_output(order.request)
        if maker.writes:
            _check_target(given, output)
    with Generation("generating", order.request.steps) as shown:
        made = maker.make(order, output, on_step=shown.take)
    if made is None:
        return
    if record is not None:
        _compare(record, made, order, maker, given["again"])
    if given["as_json"]:
        typer.echo(json.dumps({**made.to_json(), "path": str(output)}, ensure_ascii=False))
    else:
        typer.echo(summary(made, output))


def _many(given: dict[str, Any], maker: Maker, settings: dict[str, Any]) -> None:
    from sightline.video.batch import run_batch
    from sightline.video.prompts import read_prompts

    folder, begun = given["output"], time.monotonic()
    rows, bad = read_prompts(given["prompts"])
    with Progress("videos", len(rows) * given["num_videos"]) as bar:
        shown: list[Generation] = []

        def begin(item: Item) -> Any:
            while shown:
                shown.pop().__exit__(None, None, None)
                bar.advance()
            if item.order is None:
                return None
            shown.append(Generation(item.path.stem, item.order.request.steps).__enter__())
            return shown[-1].take

        try:
            batch = run_batch(
                maker, rows, bad, folder, settings=settings, count=given["num_videos"], on_video=begin
            )
        finally:
            while shown:
                shown.pop().__exit__(*sys.exc_info())
    if maker.writes:
        _print_batch(batch, time.monotonic() - begun, given["as_json"])
    if failures := batch.failures:
        of = len(batch.items) + len(batch.bad)
        raise SightlineError(f"{len(failures)} of {of} videos failed; the first: {failures[0]}")


def _print_batch(batch: Batch, seconds: float, as_json: bool) -> None:
    from sightline.progress import duration
    from sightline.video.batch import RESULTS

    counts = {status: batch.count(status) for status in ("done", "skipped", "failed")}
    if as_json:
        said = {
            "folder": str(batch.folder),
            **counts,
            "seconds": round(seconds, 3),
            "failures": batch.failures,
        }
        typer.echo(json.dumps(said, ensure_ascii=False))
        return
    typer.echo(
        f"{batch.folder}: {counts['done']} made, {counts['skipped']} there already, {counts['failed']} failed, "
        f"in {duration(seconds)}; {RESULTS} has a line for each"
    )


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request that the command line sets."""
    from sightline.video.size import parse_size

    names = ("negative_prompt", "frames", "steps", "guidance", "shift", "scheduler", "seed", "fps")
    settings = {name: given[name] for name in names if given[name] is not None}
    if given["size"] is not None:
        settings["width"], settings["height"] = parse_size(given["size"])
    if settings.get("seed", 0) < 0:
        settings["seed"] = random.SystemRandom().randrange(2**31)
    return settings


def _load_options(given: Mapping[str, Any], record: Record | None) -> dict[str, Any]:
    """Options of `VideoPipeline.load`, the record's where the command line has none."""
    load = {} if record is None else dict(record.load)
    files = ("model", "transformer_file", "vae_file", "text_encoder_file", "tokenizer")
    plain = ("device", "dtype", "cast_weights", "tile_vae", "t5_cpu", "operators", "vae_parallel")
    # Absolute, so that the record can be used from another folder.
    load |= {name: str(given[name].absolute()) for name in files if given[name] is not None}
    load |= {name: given[name] for name in plain if given[name] is not None}
    if (offload := ours.offload_from(given["offload"])) is not None:
        load["offload"] = offload
    return load


def _check_usage(given: Mapping[str, Any], record: Record | None) -> None:
    """Refuse options that exclude or need one another.

    Raises:
        UsageError: which, and what to do.
    """
    from sightline.video.prompts import check_text

    for name in ("prompt", "negative_prompt"):
        if given[name] is not None:
            check_text(given[name], f"--{name.replace('_', '-')}")
    if given["prompts"] is not None:
        if given["prompt"] is not None or record is not None:
            raise UsageError("--prompts brings its own prompts; leave --prompt and --from out")
        if given["output"] is None:
            raise UsageError("many videos need a folder; name it with -o")
    elif given["num_videos"] > 1:
        raise UsageError("--num-videos is for a file of --prompts; give one, or run it once a --seed")
    elif given["prompt"] is None and record is None and given["model"] is not None:
        raise UsageError("there is nothing to show; give --prompt, --prompts or --from")
    chosen = [name for name in ("plan", "use_attentioncache", "block_cache") if given[name]]
    if len(chosen) > 1:
        spelt = " and ".join("--" + name.replace("_", "-") for name in chosen)
        raise UsageError(f"{spelt} exclude one another; give one")
    idle = [name for name in ("start_step", "attentioncache_interval", "end_step") if given[name] is not None]
    idle += [name for name in ("block_start", "block_end") if given[name] is not None]
    if idle and not (given["use_attentioncache"] or given["block_cache"]):
        raise UsageError(
            f"--{idle[0].replace('_', '-')} says how a cache works; give --use-attentioncache or --block-cache too"
        )


def _sizes(given: Mapping[str, Any], record: Record | None) -> tuple[int, int]:
    """Over how many cards tokens and branches go: as said, as the record had it, or not at all."""
    from sightline.video.parallel.launch import process_count

    told = {} if record is None else record.parallel
    if told.get("processes") != process_count():
        told = {}
    ulysses, cfg = (given[f"{name}_size"] or told.get(name, 1) for name in ("ulysses", "cfg"))
    return ulysses, cfg


def _maker(given: Mapping[str, Any], record: Record | None, load: dict[str, Any], layout: Layout) -> Maker:
    from sightline.video.making import Maker
    from sightline.video.pipeline import VideoPipeline

    begun = time.monotonic()
    parallel = {"processes": layout.world, "ulysses": layout.ulysses, "cfg": layout.cfg}
    options = {name: value for name, value in load.items() if name != "t5_cpu"}
    if layout.world == 1:
        options.pop("vae_parallel", None)
    with Waiting("loading the model"):
        pipeline = VideoPipeline.load(**options, layout=layout if layout.world > 1 else None)
    if load.get("t5_cpu"):
        pipeline.components.text_encoder.to("cpu")
    theirs.check_task(given["task"], pipeline)
    seconds = {"load": time.monotonic() - begun} if given["prompts"] is None else {}
    return Maker(
        pipeline,
        {**load, "dtype": str(pipeline.components.dtype).removeprefix("torch.")},
        _plan_for(given, record, pipeline),
        plan_anyway=given["plan_anyway"] or (record is not None and record.plan_anyway),
        quality=given["crf"],
        save_frames=given["save_frames"],
        overwrite=given["overwrite"],
        parallel={**parallel, "vae": bool(options.get("vae_parallel"))},
        command=("sightline", *sys.argv[1:]),
        seconds=seconds,
    )


def _plan_for(given: Mapping[str, Any], record: Record | None, pipeline: VideoPipeline) -> PlanFor:
    """What gives the step cache's plan of a request."""
    from sightline.video.config import CacheConfig
    from sightline.video.plan import Plan

    if given["plan"] is not None:
        plan = Plan.load(given["plan"])
        return lambda request: plan
    if not (given["use_attentioncache"] or given["block_cache"]):
        kept = None if record is None else record.plan
        return lambda request: kept
    told = {
        "step_start": given["start_step"],
        "step_interval": given["attentioncache_interval"],
        "step_end": given["end_step"],
        "block_start": given["block_start"],
        "block_end": given["block_end"],
    }
    chosen = _CACHE | {name: value for name, value in told.items() if value is not None}
    method: Any = "attention_cache" if given["use_attentioncache"] else "dit_block_cache"
    blocks = len(pipeline.components.transformer.blocks)

    def plan_for(request: Request) -> Plan:
        plan = CacheConfig(method, blocks, request.steps, **chosen).plan()
        rows = [row for sites in plan.actions.values() for row in sites.values()]
        if all(set(row) <= {"C"} for row in rows):
            raise UsageError(
                f"the step cache takes nothing in {request.steps} steps of {blocks} blocks: a step after --start-step "
                f"{chosen['step_start']}, up to --end-step {chosen['step_end']}, that --attentioncache-interval "
                f"{chosen['step_interval']} leaves out"
            )
        return plan

    return plan_for


def _order(given: Mapping[str, Any], maker: Maker, record: Record | None, settings: dict[str, Any]) -> Order:
    """What is made, and for --from whether it can be the same.

    Raises:
        SightlineError: the model's weights are not those of the record.
    """
    from sightline.video.making import as_said
    from sightline.video.request import Request

    settings = as_said(maker.pipeline.layout, settings)
    if record is None:
        return maker.order(given["prompt"] or _BUILT_IN_PROMPT, **settings)
    said = {} if given["prompt"] is None else {"prompt": given["prompt"]}
    order = maker.order_for(Request(**(record.request.to_json() | settings | said)))
    if record.setting.weights not in (None, order.setting.weights):
        raise SightlineError(
            f"{given['again']} was made by {record.setting.model or 'a model'} with other weights than "
            f"{order.setting.model} has; give that --model"
        )
    return order


def _compare(record: Record, made: Record, order: Order, maker: Maker, path: Path) -> None:
    """Say whether a video that was to be the same is."""
    if record.differences(order.request, order.setting, maker.load, order.plan):
        return
    if made.frames_sha256 == record.frames_sha256:
        note(f"the same frames as {path} says, bit for bit")
        return
    was = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    note(
        f"warning: not the same frames as {path} says, which were made on {record.setting.device or 'another device'} "
        f"by {record.parallel.get('processes', 1)} process(es) with {was}"
    )


def _check_target(given: Mapping[str, Any], output: Path) -> None:
    from sightline.video.writing.save import check_target

    check_target(output, overwrite=given["overwrite"], save_frames=given["save_frames"])


def _default_output(request: Request) -> Path:
    from sightline.video.prompts import slug

    return Path(f"{slug(request.prompt)}-{request.seed}.mp4")
