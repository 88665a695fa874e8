"""`sightline video generate`: parse, make, print."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from sightline.cli.video import options as ours
from sightline.cli.video import theirs
from sightline.cli.video.building import (
    check_usage,
    in_options,
    is_many,
    load_options,
    make_maker,
    plan_steps,
    settings_of,
    sizes_of,
)
from sightline.cli.video.showing import Generation, Voice, hold_back, one_voice, summary
from sightline.errors import SightlineError
from sightline.progress import Progress, duration, note

if TYPE_CHECKING:
    from sightline.video.batch import Batch, Item
    from sightline.video.making import Maker, Order
    from sightline.video.pipeline import OnStep
    from sightline.video.prompts import BadRow, Row
    from sightline.video.request import Request
    from sightline.video.writing.record import Record

EXAMPLE = 'Example: sightline video generate --model Wan2.1-T2V-1.3B-Diffusers --prompt "a cat" -o cat.mp4'
_BUILT_IN_PROMPT = "a three moving left and a seven moving up"  # what the built-in model has learned to show


class Command(TyperCommand):
    """Takes --offload-model with a value and without one, and lets one rank say what is typed wrong."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, ours.with_bare_offload(args))
        except Exception as error:
            if hasattr(error, "format_message"):  # of what is typed; leaving after --help is an exception too
                hold_back()
            raise


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
    device: ours.VideoDevice = None,
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
    with one_voice() as voice:
        theirs.answer_theirs(task, given)
        _generate(given, voice)


def _generate(given: dict[str, Any], voice: Voice) -> None:
    from sightline.video.parallel.launch import joined
    from sightline.video.parallel.watch import watched
    from sightline.video.prompts import read_prompts
    from sightline.video.seeds import DRAWN
    from sightline.video.writing.record import Record

    record = None if given["again"] is None else Record.read(given["again"])
    settings = settings_of(given)
    if is_many(given) and given["seed"] == DRAWN:
        settings["seed"] = DRAWN  # a batch that goes on takes what was drawn
    load = load_options(given, record)
    check_usage(given, record)
    settings |= plan_steps(given)
    rows, bad = read_prompts(given["prompts"]) if given["prompts"] is not None else ([_row(given)], [])
    sizes = sizes_of(given, record)
    with joined(*sizes, load.get("device")) as layout, watched(layout), in_options(), ExitStack() as held:
        voice.settled = True
        if given["output"] is not None and not is_many(given) and layout.leads:
            _reserve(given, given["output"], held)  # before the model is loaded
        maker = make_maker(given, record, load, layout)
        if not is_many(given):
            _one(given, maker, record, settings, held)
        else:
            _many(given, maker, rows, bad, settings)


def _one(
    given: dict[str, Any], maker: Maker, record: Record | None, settings: dict[str, Any], held: ExitStack
) -> None:
    order = _order(given, maker, record, settings)
    output = given["output"]
    if output is None:
        output = _default_output(order.request)
        if maker.writes:
            _reserve(given, output, held)
    with Generation("generating", order.request.steps) as shown:
        made = maker.make(order, output, on_step=shown.take)
    if made is None:
        return
    output = output.with_name(made.file)  # another one where its own was taken meanwhile
    if record is not None:
        _compare(record, made, order, maker, given["again"])
    if given["as_json"]:
        typer.echo(json.dumps({**made.to_json(), "path": str(output)}, ensure_ascii=False))
    else:
        typer.echo(summary(made, output))


def _many(
    given: dict[str, Any], maker: Maker, rows: list[Row], bad: list[BadRow], settings: dict[str, Any]
) -> None:
    from sightline.video.batch import run_batch
    from sightline.video.parallel.agree import as_said

    begun = time.monotonic()
    settings = as_said(maker.pipeline.layout, settings)
    with Progress("videos") as bar:

        @contextmanager
        def shown(item: Item, number: int, count: int) -> Iterator[OnStep]:
            bar.update(number - 1, count)
            with Generation(item.path.stem, item.order.request.steps if item.order else 0) as generation:
                yield generation.take
            bar.update(number, count)

        batch = run_batch(
            maker,
            rows,
            bad,
            given["output"],
            settings=settings,
            count=given["num_videos"],
            on_video=shown,
        )
    if maker.writes:
        _print_batch(batch, time.monotonic() - begun, given["as_json"])
    if failures := batch.failures:
        count = len(batch.items) + len(batch.bad)
        raise SightlineError(f"{len(failures)} of {count} videos failed; the first: {failures[0]}")


def _print_batch(batch: Batch, seconds: float, as_json: bool) -> None:
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


def _prompt(given: Mapping[str, Any]) -> str:
    return _BUILT_IN_PROMPT if given["prompt"] is None else given["prompt"]


def _row(given: Mapping[str, Any]) -> Row:
    """The prompt of the command line, as a file of prompts would have it."""
    from sightline.video.prompts import Row, slug

    return Row(1, 1, _prompt(given), name=slug(_prompt(given)))


def _order(given: Mapping[str, Any], maker: Maker, record: Record | None, settings: dict[str, Any]) -> Order:
    """What is made, and for --from whether it can be the same.

    Raises:
        SightlineError: the model's weights are not those of the record.
    """
    from sightline.video.parallel.agree import as_said
    from sightline.video.request import Request

    settings = as_said(maker.pipeline.layout, settings)
    if record is None:
        return maker.order(_prompt(given), **settings)
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
    other = record.differences(order.request, order.setting, maker.load, order.plan, maker.parts)
    if other:
        note(f"another video than {path} says: {'; '.join(other)}")
        return
    if made.frames_sha256 == record.frames_sha256:
        note(f"the same frames as {path} says, bit for bit")
        return
    pairs = [("device", record.setting.device, made.setting.device)]
    pairs += [(name, told, made.parallel.get(name)) for name, told in record.parallel.items()]
    pairs += [(name, number, made.versions.get(name)) for name, number in record.versions.items()]
    other = [f"{name} ({was}, here {now})" for name, was, now in pairs if was != now]
    note(f"warning: not bit for bit the frames of {path}: {'; '.join(other) or 'nothing known differs'}")


def _reserve(given: Mapping[str, Any], output: Path, held: ExitStack) -> None:
    """Refuse what could not be written, and keep the name until the end."""
    from sightline.video.writing.reserve import reserved
    from sightline.video.writing.save import check_target

    check_target(output, overwrite=given["overwrite"], save_frames=given["save_frames"], quality=given["crf"])
    held.enter_context(reserved(output))
    # Another process may have been done in between.
    check_target(output, overwrite=given["overwrite"], save_frames=given["save_frames"], quality=given["crf"])


def _default_output(request: Request) -> Path:
    from sightline.video.prompts import slug

    return Path(f"{slug(request.prompt)}-{request.seed}.mp4")
