"""What the options of `sightline video generate` say together."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.cli.video import theirs
from sightline.cli.video.options import offload_from
from sightline.cli.video.showing import Waiting
from sightline.errors import SightlineError, UsageError
from sightline.progress import note

if TYPE_CHECKING:
    from sightline.video.making import Maker, PlanFor
    from sightline.video.parallel.layout import Layout
    from sightline.video.pipeline import VideoPipeline
    from sightline.video.plan import Plan
    from sightline.video.request import Request
    from sightline.video.writing.record import Record

# Arguments of the library in its errors, as patterns, and how the command line spells them.
_OPTIONS = {
    name: "--" + name.replace("_", "-")
    for name in (
        "transformer_file",
        "vae_file",
        "text_encoder_file",
        "tile_vae",
        "cast_weights",
        "vae_parallel",
    )
}
_OPTIONS |= {
    "text_encoder_device cpu": "--t5-cpu",
    "offload(?= (model|group)\\b)": "--offload",
    r"crf(?= \d)": "--crf",
}
_CACHE = {"step_start": 12, "step_interval": 4, "step_end": 37}  # MindIE's defaults


def settings_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request that the command line sets.

    Raises:
        UsageError: one that is out of range for any model.
    """
    from sightline.video.request import Request
    from sightline.video.seeds import DRAWN, draw
    from sightline.video.size import parse_size

    names = ("negative_prompt", "frames", "steps", "guidance", "shift", "scheduler", "seed", "fps")
    settings = {name: given[name] for name in names if given[name] is not None}
    if given["size"] is not None:
        settings["width"], settings["height"] = parse_size(given["size"])
    if (seed := settings.get("seed", 0)) < DRAWN:
        raise UsageError(f"--seed {seed} is none; give 0 or more, or {DRAWN} to draw one")
    if seed == DRAWN:
        settings["seed"] = draw()
    # What no model has is refused before one is loaded: with anything for what is not said.
    unsaid: dict[str, Any] = {
        "prompt": "-",
        "width": 1,
        "height": 1,
        "frames": 1,
        "steps": 1,
        "guidance": 1.0,
        "shift": 1.0,
    }
    Request(**(unsaid | settings))
    return settings


def plan_steps(given: Mapping[str, Any]) -> dict[str, int]:
    """The number of steps of `--plan`, where `--sample-steps` does not say one: a search may take fewer."""
    from sightline.video.plan import Plan

    if given["plan"] is None or given["steps"] is not None:
        return {}
    return {"steps": Plan.load(given["plan"]).steps}


def load_options(given: Mapping[str, Any], record: Record | None) -> dict[str, Any]:
    """Options of `VideoPipeline.load`, the record's where the command line has none."""
    load = {} if record is None else dict(record.load)
    files = ("model", "transformer_file", "vae_file", "text_encoder_file", "tokenizer")
    plain = ("device", "dtype", "cast_weights", "tile_vae", "operators", "vae_parallel")
    # Absolute, so that the record can be used from another folder.
    load |= {name: str(given[name].absolute()) for name in files if given[name] is not None}
    load |= {name: given[name] for name in plain if given[name] is not None}
    if (offload := offload_from(given["offload"])) is not None:
        load["offload"] = offload
    if given["t5_cpu"] is not None:
        load["text_encoder_device"] = "cpu" if given["t5_cpu"] else None
    return load


def is_many(given: Mapping[str, Any]) -> bool:
    """Whether -o is a folder of videos."""
    return given["prompts"] is not None or given["num_videos"] > 1


def check_usage(given: Mapping[str, Any], record: Record | None) -> None:
    """Refuse options that exclude or need one another.

    Raises:
        UsageError: which, and what to do.
    """
    from sightline.video.prompts import check_text
    from sightline.video.writing.formats import SUFFIXES

    for name, value in given.items():
        if isinstance(value, (str, Path)):
            check_text(str(value), f"--{name.replace('_', '-')}")
    if given["prompt"] is not None and not given["prompt"].strip():
        raise UsageError("--prompt is empty; say what the video shall show")
    if is_many(given):
        if given["prompts"] is not None and (given["prompt"] is not None or record is not None):
            raise UsageError("--prompts brings its own prompts; leave --prompt and --from out")
        if record is not None:
            raise UsageError("--from makes one video; leave --num-videos out, or give --prompt instead")
        if given["output"] is None:
            raise UsageError("many videos need a folder; name it with -o")
        if given["output"].suffix.lower() in SUFFIXES:
            raise UsageError(
                f"with {'--prompts' if given['prompts'] is not None else '--num-videos'} -o is a folder, not "
                f"{given['output']}; name it {given['output'].stem}"
            )
    if given["prompt"] is given["prompts"] is None and record is None and given["model"] is not None:
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


def sizes_of(given: Mapping[str, Any], record: Record | None) -> tuple[int, int]:
    """Over how many cards tokens and branches go: as said, as the record had it, or not at all."""
    from sightline.video.parallel.launch import process_count

    told = {} if record is None else record.parallel
    if told.get("processes") != process_count():
        told = {}
    ulysses, cfg = (given[f"{name}_size"] or told.get(name, 1) for name in ("ulysses", "cfg"))
    return ulysses, cfg


@contextmanager
def in_options() -> Iterator[None]:
    """Let errors name the options of the command line where they name arguments in Python."""
    try:
        yield
    except SightlineError as error:
        text = str(error)
        for pattern, option in _OPTIONS.items():
            text = re.sub(rf"(?<![\w./-]){pattern}(?![\w./])", option, text)
        if text == str(error):
            raise
        raise type(error)(text) from error


def make_maker(
    given: Mapping[str, Any], record: Record | None, load: dict[str, Any], layout: Layout
) -> Maker:
    parallel = {"processes": layout.world, "ulysses": layout.ulysses, "cfg": layout.cfg}
    options = dict(load)
    if layout.world == 1 and options.pop("vae_parallel", None) and given["vae_parallel"]:
        note("--vae-parallel changes nothing: this is one process; start several with torchrun")
    anyway = given["plan_anyway"]
    # Around the imports too, which take long from a slow disk.
    with Waiting("loading the model"):
        from sightline.video.making import Maker
        from sightline.video.pipeline import VideoPipeline
        from sightline.video.plan import Plan

        # Read before the model is loaded, which may take minutes.
        plan = None if given["plan"] is None else Plan.load(given["plan"])
        if plan is None and record is not None:
            plan, anyway = record.plan, anyway or record.plan_anyway
        begun = time.monotonic()
        pipeline = VideoPipeline.load(**options, layout=layout if layout.world > 1 else None)
    named = any(load.get(name) is not None for name in ("model", "transformer_file"))
    theirs.check_task(given["task"], pipeline, built_in=not named)
    seconds = {"load": time.monotonic() - begun} if not is_many(given) else {}
    return Maker(
        pipeline,
        {**load, "dtype": str(pipeline.components.dtype).removeprefix("torch.")},
        _plan_for(given, plan, pipeline),
        plan_anyway=anyway,
        quality=given["crf"],
        save_frames=given["save_frames"],
        overwrite=given["overwrite"],
        parallel={**parallel, "vae": bool(options.get("vae_parallel"))},
        command=("sightline", *sys.argv[1:]),
        seconds=seconds,
    )


def _plan_for(given: Mapping[str, Any], plan: Plan | None, pipeline: VideoPipeline) -> PlanFor:
    """What gives the step cache's plan of a request: `plan`, or what the options of a cache say."""
    from sightline.video.config import CacheConfig

    if not (given["use_attentioncache"] or given["block_cache"]):
        return lambda request: plan
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
