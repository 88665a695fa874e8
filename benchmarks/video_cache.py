r"""Step caching against its peers in one run: seconds of denoising against the PSNR of the worst prompt.

    python benchmarks/video_cache.py --plans runs/bench/search --cache-dit-python peers/cache-dit/bin/python
    python benchmarks/video_cache.py --quick                  few settings, two prompts, to see that everything runs
    python benchmarks/video_cache.py --model FOLDER --prompts 2     another Wan, in diffusers' form

Ours are the plans that a search left, on other prompts and seeds than those that are measured here:

    sightline video search --prompts benchmarks/caching/search_prompts.txt --seeds 0 --steps 50 --dtype fp32 \
        --budget 2x --minutes 1 -o runs/bench/search

The peer of another package runs in a Python of its own (`benchmarks/caching/engines/cache_dit.py` says how it is made).
Contestants: exact runs (diffusers' pipeline and ours, which must agree), fewer steps, plans by rule, searched plans,
diffusers' FirstBlockCache, TaylorSeer, MagCache (calibrated on a prompt of the search) and SeaCache, cache-dit's step
masks and DBCache; each with several settings. Thresholds of FirstBlockCache and DBCache are sought first, on a prompt
of the search, so that their computed calls are spread from all to few. Every engine is a process that does one job at
a time, and nothing else runs meanwhile; a round is a prompt with its seed, in which every contestant runs once, another
one first each time. Timed is the loop over the steps: texts are encoded before, latents decoded after. All begin with
the same noise and are held against diffusers' exact run, in frames that went through no file. Operations are counted by
torch in a run of its own. Run it on an idle machine; it takes about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caching import contestants, report
from caching.contest import Contest, Result, agreement
from caching.contestants import EXACT, Contestant
from caching.process import Worker
from caching.scout import scout
from offline.report import table

from sightline.errors import SightlineError
from sightline.files import write_json
from sightline.progress import note
from sightline.video.sheets.front import Row, front

if TYPE_CHECKING:
    from sightline.video.pipeline import VideoPipeline
    from sightline.video.request import Request

_RUNS = Path("runs/bench")
_HERE = Path(__file__).parent / "caching"
# Exact runs of two programs differ by rounding; further apart they do not compute the same thing.
_AGREE = 50.0
# As torch names them, and as the command line does.
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}


def main() -> None:
    try:
        run(parse(sys.argv[1:]))
    except SightlineError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="diffusers' folder of a Wan; the built-in one without it")
    parser.add_argument("--plans", type=Path, help="the folder of a search, of plans, or one plan")
    parser.add_argument("--cache-dit-python", help="the Python that has cache-dit; left out without it")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--prompts", type=int, help="take the first so many of prompts.txt")
    parser.add_argument("--size", help="WIDTHxHEIGHT, in place of the model's own")
    parser.add_argument("--frames", type=int, help="in place of the model's own")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--family", action="append", help="only this one, as the table names it; may be given again"
    )
    parser.add_argument("--quick", action="store_true", help="one setting of each family, two prompts")
    parser.add_argument("--json", type=Path, default=_RUNS / "video_cache.json", help="every figure")
    parser.add_argument("--plot", type=Path, default=_RUNS / "video_cache.png")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from sightline.video.pipeline import VideoPipeline
    from sightline.video.roofline import ceiling

    torch.set_num_threads(options.threads)
    pipeline = VideoPipeline.load(options.model, dtype=DTYPES[options.dtype], device="cpu")
    folder = pipeline.components.folder
    if folder is None:
        raise SightlineError("the peers need a diffusers folder; give one with --model")
    requests = requested(pipeline, options, "prompts.txt")
    pythons = {"wan_pipeline": sys.executable, "ours": sys.executable}
    if options.cache_dit_python:
        pythons["cache_dit"] = options.cache_dit_python
    with (
        tempfile.TemporaryDirectory(prefix="sightline-caching-") as work,
        started(pythons, folder, options) as (workers, absent),
    ):
        contest = Contest(workers, pipeline, Path(work))
        chosen, left_out = entered(contest, pipeline, requests[0], options, Path(work))
        if options.family:
            chosen = [one for one in chosen if one.family in (EXACT, *options.family)]
        results = contest.run(chosen, requests, contestants.references()[0])
        versions = {name: worker.versions for name, worker in workers.items()}
    rate = ceiling(pipeline.components.device, getattr(torch, options.dtype))
    found = told(results, requests, rate, options)
    found |= {"versions": versions, "left_out": absent | left_out, "model": pipeline.components.name}
    write_json(options.json, found)
    draw(results, requests, options, found["model"])
    show(results, found, rate)
    note(f"written to {options.json} and {options.plot}")
    return found


def requested(pipeline: VideoPipeline, options: argparse.Namespace, name: str) -> list[Request]:
    """The prompts of a file, each with a seed of its own."""
    from sightline.video.size import parse_size

    width, height = parse_size(options.size) if options.size else (None, None)
    lines = [line.strip() for line in (_HERE / name).read_text(encoding="utf-8").splitlines() if line.strip()]
    count = options.prompts or (2 if options.quick else len(lines))
    return [
        pipeline.request(
            line,
            seed=1000 + number,
            steps=options.steps,
            width=width,
            height=height,
            frames=options.frames,
            scheduler="unipc",
        )
        for number, line in enumerate(lines[:count])
    ]


@contextlib.contextmanager
def started(
    pythons: Mapping[str, str], model: Path, options: argparse.Namespace
) -> Iterator[tuple[dict[str, Worker], dict[str, str]]]:
    """The engines' processes, and why one of them is not there; a peer's failure ends nothing."""
    workers: dict[str, Worker] = {}
    absent: dict[str, str] = {}
    try:
        for name, python in pythons.items():
            try:
                workers[name] = Worker(name, python, model, options.dtype, options.threads)
            except SightlineError as error:
                if name != "cache_dit":
                    raise
                absent[name] = str(error).removeprefix(f"{name}: ")
                note(f"left out: {error}")
        yield workers, absent
    finally:
        for worker in workers.values():
            worker.close()


def entered(
    contest: Contest, pipeline: VideoPipeline, request: Request, options: argparse.Namespace, work: Path
) -> tuple[list[Contestant], dict[str, str]]:
    """Everyone who takes part, and what does not with its reason."""
    setting = pipeline.setting(request)
    layers = pipeline.components.transformer.config.num_layers
    left_out: dict[str, str] = {}
    chosen = contestants.references() + contestants.rules(setting, layers, work, options.quick)
    if options.plans:
        chosen += contestants.searched(options.plans, setting)
    else:
        left_out["searched plans"] = "no --plans"
    (other,) = requested(
        pipeline, argparse.Namespace(**{**vars(options), "prompts": 1}), "search_prompts.txt"
    )
    scouted, failed = scout(contest, other, options.quick)
    left_out |= failed
    chosen += contestants.diffusers_caches(request.steps, options.quick, scouted)
    if "cache_dit" in contest.workers:
        chosen += contestants.cache_dit(request.steps, options.quick, scouted)
    for name, reason in left_out.items():
        note(f"left out: {name}: {reason}")
    return chosen, left_out


def told(
    results: Sequence[Result], requests: Sequence[Request], rate: float, options: argparse.Namespace
) -> dict[str, Any]:
    """Everything for the JSON."""
    ours = f"{EXACT}: ours"
    return {
        "steps": options.steps,
        "threads": options.threads,
        "dtype": options.dtype,
        "ceiling_flops": rate,
        "requests": [request.to_json() for request in requests],
        "exact_runs_agree_psnr": agreement(results, ours),
        "headline": report.headline(results),
        "headline_operations": report.headline(results, "operations"),
        "results": report.plain(results),
    }


def draw(
    results: Sequence[Result], requests: Sequence[Request], options: argparse.Namespace, model: str
) -> None:
    """The front, without ours of the exact runs twice."""
    drawn = report.rows(results)
    exact = next(row.seconds for row in drawn if row.family == EXACT and row.label == "diffusers")
    one = requests[0]
    front(
        [
            Row(row.label, row.family, "baseline" if row.family == EXACT else row.kind, row.seconds, row.psnr)
            for row in drawn
        ],
        options.plot,
        exact=exact,
        title=f"{model}, {one.width}x{one.height}x{one.frames}, {one.steps} steps, guidance {one.guidance:g}, "
        f"{len(requests)} prompts, {options.threads} threads, {options.dtype}",
    )


def show(results: Sequence[Result], found: Mapping[str, Any], rate: float) -> None:
    print(table(report.table(results, rate)))
    where = f"a large matrix product in {found['dtype']} on {found['threads']} threads"
    print(f"\nceiling: {rate / 1e9:,.0f} GFLOP/s, {where}")
    agree = found["exact_runs_agree_psnr"]
    warning = "" if agree >= _AGREE else ": they do NOT agree"
    print(f"exact runs of diffusers and ours, worst prompt: {agree:.1f} dB{warning}")
    for name in ("seconds", "operations"):
        print(f"\nours against the best peer at equal PSNR of the worst prompt, in {name}:")
        print("\n".join(_headline(found["headline" if name == "seconds" else "headline_operations"])))
    for name, reason in found["left_out"].items():
        print(f"left out: {name}: {reason}")


def _headline(head: Mapping[str, Any]) -> list[str]:
    points = head["points"]
    if not points:
        return ["  no setting of ours has a PSNR that the peers' front has, too"]
    spread = f"{head['least']:.2f} to {head['most']:.2f}"
    lines = [f"  {head['median']:.2f} times as fast, the median of {len(points)} settings ({spread})"]
    for point in points:
        both = f"{point['ours']:.3g} against {point['peer']:.3g}"
        lines.append(f"  {point['psnr']:.1f} dB: {both}, {point['ratio']:.2f} ({point['label']})")
    return lines


if __name__ == "__main__":
    main()
