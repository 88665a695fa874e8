"""Wan2.1's speed part by part, with random weights of the published shape, beside what the machine can do.

    python benchmarks/video_wan.py [--model t2v-1.3B] [--size 832x480] [--frames 81] [--steps 50] [--only PART,...]
    python benchmarks/video_wan.py --tiny

Parts, in this order:
    attention   kernels at the exact shapes, as `sightline video tune` shows them
    forms       one guided step: diffusers' own blocks and ours, as they are and compiled, in turns
    profile     where a forward by our operators spends its time
    generation  all steps exactly, and with the two plans of MindIE SD's examples
    vae, text   decoding, and encoding one prompt
    ulysses     what several cards would have to send, counted

Shares are of a large matrix product in the same dtype (of the VAE: as convolutions compute, in TF32 on CUDA), measured
first. Time depends on shapes, not on what the weights
are, so random ones do; what a plan costs in quality is not measured here. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from wan.clock import Clock
from wan.shapes import SHAPES, Shape, make_scheduler, make_text_encoder, make_transformer, make_vae, sharing

from sightline.errors import first_line
from sightline.hardware import accelerator
from sightline.hardware.operators.dense_attention import Problem, measured
from sightline.video import operations
from sightline.video.attach import Attachment
from sightline.video.builders import exact
from sightline.video.cache import StepCache
from sightline.video.config import CacheConfig
from sightline.video.denoise import denoise
from sightline.video.parallel.volume import of_attention
from sightline.video.plan import Plan
from sightline.video.request import Request
from sightline.video.roofline import bandwidth, ceiling, roofline
from sightline.video.setting import Setting
from sightline.video.sites import BRANCHES, Action
from sightline.video.solvers import make_solver
from sightline.video.wan_blocks import use_operators

PARTS = ("attention", "forms", "profile", "generation", "vae", "text", "ulysses")


@dataclass
class Bench:
    """What all parts share."""

    shape: Shape
    request: Request
    text: int
    device: torch.device
    dtype: torch.dtype
    rounds: int
    compiled: bool
    found: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clock = Clock(self.device)
        self.rate = ceiling(self.device, self.dtype)
        self.model = make_transformer(self.shape, self.device, self.dtype)
        self.latents = operations.latents_of(
            self.model.config, self.request.width, self.request.height, self.request.frames
        )
        self.tokens = operations.tokens_of(self.model.config, self.latents)
        self.width = 2 if self.dtype.itemsize == 2 else 4
        generator = torch.Generator().manual_seed(0)
        self.noise = torch.randn(self.latents, generator=generator).to(self.device)
        self.texts = {
            branch: torch.randn(1, self.text, self.shape.text_dim, generator=generator).to(
                self.device, self.dtype
            )
            for branch in BRANCHES
        }

    def work(self, plan: Plan | None = None, *, steps: int, share: bool = True) -> operations.Work:
        return operations.total(
            operations.denoising_work(
                self.model.config, self.latents, steps, self.text, plan=plan, share=share, size=self.width
            )
        )

    def share(self, seconds: float, work: operations.Work) -> float:
        return roofline(seconds, work.operations, self.rate)

    @torch.inference_mode()
    def call(self, model: Any, branches: Sequence[str] = BRANCHES, moment: float = 500.0) -> None:
        """The transformer once for each branch."""
        given, when = self.noise.to(self.dtype), torch.tensor([moment], device=self.device)
        for branch in branches:
            model(given, when, self.texts[branch], return_dict=False)

    @torch.inference_mode()
    def generate(self, model: Any, plan: Plan) -> float:
        """Seconds of denoising with a plan, as `VideoPipeline` does it, after one step of each kind."""
        cache = StepCache(plan)
        attachment = Attachment(model, cache)
        given = self.noise.to(self.dtype)
        try:
            with cache.generation():
                for step in _kinds(plan):
                    for branch in BRANCHES:
                        with cache.step(step, branch):
                            when = torch.tensor([500.0], device=self.device)
                            model(given, when, self.texts[branch], return_dict=False)
            with cache.generation():
                solver = make_solver(self.request, make_scheduler(), self.device)
                return self.clock.seconds(
                    lambda: denoise(
                        model,
                        solver,
                        self.noise,
                        self.texts,
                        guidance=self.request.guidance,
                        clock=cache.step,
                    )
                )
        finally:
            attachment.detach()


def _graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _kinds(plan: Plan) -> list[int]:
    """The first step, and those up to the one after the first that is taken from another."""
    rows = [row for sites in plan.actions.values() for row in sites.values()]
    taken = [step for row in rows for step, action in enumerate(row) if action is not Action.COMPUTE]
    first = min(taken, default=1)
    return sorted({0, first - 1, first, min(first + 1, plan.steps - 1)})


def attention(bench: Bench) -> None:
    """Self- and cross-attention, and self-attention of one of four cards."""
    heads = bench.shape.heads
    shapes = [("self", heads, bench.tokens), ("cross", heads, bench.text)]
    if heads % 4 == 0:
        shapes.append(("self, 1 of 4 cards", heads // 4, bench.tokens))
    for name, own, keys in shapes:
        problem = Problem.from_shape(f"1x{own}x{bench.tokens}x{bench.shape.head_dim}", bench.dtype, keys=keys)
        measurement = measured(problem, bench.device, bench.device.type)
        best = measurement.best()
        print(f"\nattention, {name}: {problem.key()}, {problem.operations / 1e12:.4g} TFLOP")
        for trial in measurement.trials:
            if trial.seconds is None:
                print(f"  {trial.name:<18}{trial.layout:<6}{trial.reason}")
                continue
            share = roofline(trial.seconds, problem.operations, bench.rate)
            mark = "chosen" if trial == best else ""
            print(f"  {trial.name:<18}{trial.layout:<6}{trial.seconds * 1e3:>10.4g} ms{share:>7.0%}  {mark}")
        bench.found.setdefault("attention", {})[name] = measurement.plain()
        accelerator.find(str(bench.device)).empty_cache()


def forms(bench: Bench) -> None:
    """One step of both branches, by every way to compute the blocks."""
    ways: dict[str, Callable[[], Any]] = {}
    for ours in (False, True):
        for compiled in (False, True) if bench.compiled else (False,):
            name = ("operators" if ours else "diffusers") + (", compiled" if compiled else "")
            step = _step(bench, ours=ours, compiled=compiled)
            try:
                step()
            except Exception as failure:  # no compiler, say: the others can still be measured
                print(f"  {name}: {first_line(failure)}")
                continue
            ways[name] = step
    times = bench.clock.turns(list(ways.values()), bench.rounds)
    work = bench.work(steps=1, share=False)
    print(f"\nforms, one step, both branches, nothing shared: {_flop(work)}")
    for name, row in zip(ways, times, strict=True):
        ratio = statistics.median(first / own for first, own in zip(times[0], row, strict=True))
        best, share = min(row), bench.share(min(row), work)
        print(f"  {name:<22}{best:>10.4g} s{share:>7.0%}   {ratio:.3f} times {next(iter(ways))}")
        bench.found.setdefault("forms", {})[name] = {"seconds": row, "share": share, "ratio": ratio}


def _step(bench: Bench, *, ours: bool, compiled: bool) -> Callable[[], Any]:
    model = sharing(bench.model)
    if ours:
        _prepare(bench, model)
    if compiled:
        model.compile_repeated_blocks(fullgraph=True)
    return lambda: bench.call(model)


def _prepare(bench: Bench, model: Any) -> None:
    """Our operators, with the attention of these shapes chosen before anything is compiled or timed."""
    use_operators(model)
    for keys in (bench.tokens, bench.text):
        problem = Problem.from_shape(
            f"1x{bench.shape.heads}x{bench.tokens}x{bench.shape.head_dim}", bench.dtype, keys=keys
        )
        measured(problem, bench.device, bench.device.type)


def profile(bench: Bench) -> None:
    """Seconds of each part of a forward."""
    model = sharing(bench.model)
    _prepare(bench, model)
    one = partial(bench.call, model, BRANCHES[:1])
    alone = bench.clock.turns([one], bench.rounds)[0]
    with bench.clock.parts(model) as spent:
        whole = bench.clock.seconds(one)
    works = operations.forward_work(bench.model.config, bench.latents, bench.text, size=bench.width)
    spent = dict(sorted(spent.items(), key=lambda item: -item[1]))
    spent["norms, modulation, rest"] = whole - sum(spent.values())
    print(f"\nprofile of a forward: {min(alone):.4g} s, {whole:.4g} s with every part waited for")
    for part, seconds in spent.items():
        share = f"{bench.share(seconds, works[part]):>7.0%} of the ceiling" if part in works else ""
        print(f"  {part:<26}{seconds:>10.4g} s{seconds / whole:>7.1%}{share}")
    moved = works["elementwise"].bytes / bandwidth(bench.device)
    print(f"  what the norms, modulation and residuals must move takes {moved:.4g} s at the speed of a copy")
    bench.found["profile"] = {"alone": alone, "whole": whole, "parts": spent, "elementwise_floor": moved}


def generation(bench: Bench) -> None:
    """All steps, exact and with the plans of MindIE SD's examples, moved to as many steps."""
    model, steps, layers = sharing(bench.model), bench.request.steps, bench.shape.layers
    _prepare(bench, model)
    if bench.compiled:
        model.compile_repeated_blocks(fullgraph=True)
    common = {"step_start": steps * 20 // 50, "step_interval": 2, "step_end": steps * 47 // 50}
    plans = {
        "exact": exact(Setting(steps=steps)),
        "block cache": CacheConfig(
            "dit_block_cache", layers, steps, **common, block_start=1, block_end=layers - 1
        ).plan(),
        "attention cache": CacheConfig("attention_cache", layers, steps, **common).plan(),
    }
    first = 0.0
    print(f"\ngeneration, {steps} steps, both branches, first block's self-attention shared")
    for name, plan in plans.items():
        try:
            seconds = bench.generate(model, plan)
        except Exception as failure:
            print(f"  {name}: {first_line(failure)}")
            continue
        first = first or seconds
        work = bench.work(plan, steps=steps)
        floor = bench.work(steps=steps, share=False).operations / work.operations
        print(
            f"  {name:<18}{seconds:>10.4g} s, {seconds / steps:.4g} s a step, {first / seconds:.2f} times exact "
            f"(counted {floor:.2f}); {_flop(work)}, {bench.share(seconds, work):.0%}"
        )
        bench.found.setdefault("generation", {})[name] = {
            "seconds": seconds,
            "operations": work.operations,
            "share": bench.share(seconds, work),
        }


def vae(bench: Bench) -> None:
    """Decoding, in float32 as the pipeline does, and in the transformer's dtype."""
    for dtype in dict.fromkeys((torch.float32, bench.dtype)):
        _decode(bench, dtype)
        accelerator.find(str(bench.device)).empty_cache()


def _decode(bench: Bench, dtype: torch.dtype) -> None:
    module = make_vae(bench.shape, bench.device, dtype)
    latents = bench.noise.to(dtype)
    work = operations.decode_work(module.config, bench.latents, size=dtype.itemsize)
    with torch.inference_mode():
        times = bench.clock.turns([lambda: module.decode(latents, return_dict=False)], 1)[0]
    _single(bench, f"vae, {_name(dtype)}", times, work, ceiling(bench.device, dtype, convolutions=True))


def text(bench: Bench) -> None:
    """One prompt."""
    module = make_text_encoder(bench.shape, bench.device, bench.dtype)
    ids = torch.ones(1, bench.text, dtype=torch.long, device=bench.device)
    work = operations.text_work(module.config, bench.text, size=bench.width)
    with torch.inference_mode():
        times = bench.clock.turns([lambda: module(ids, torch.ones_like(ids))], bench.rounds)[0]
    _single(bench, "text", times, work, bench.rate)


def _single(bench: Bench, name: str, times: list[float], work: operations.Work, rate: float) -> None:
    share = roofline(min(times), work.operations, rate)
    print(
        f"\n{name}: {min(times):.4g} s, {work.operations / 1e12:.4g} TFLOP, {share:.0%} of {rate / 1e12:.4g} TFLOP/s"
    )
    bench.found[name] = {"seconds": times, "operations": work.operations, "share": share}


def ulysses(bench: Bench) -> None:
    """Bytes that leave a card in a generation."""
    shape, steps = bench.shape, bench.request.steps
    print("\nulysses, what leaves each card in a generation")
    for size in (2, 4, 8):
        if size > shape.heads:
            continue
        volume = of_attention(bench.tokens, shape.heads, shape.head_dim, size)
        sent = volume.leaving * bench.dtype.itemsize * shape.layers * len(BRANCHES) * steps
        uneven = "" if shape.heads % size == 0 else f" (heads uneven: {shape.heads} over {size})"
        print(f"  {size} cards: {sent / 1e9:>9.4g} GB{uneven}")
        bench.found.setdefault("ulysses", {})[str(size)] = sent


def _flop(work: operations.Work) -> str:
    tera = work.operations / 1e12
    return f"{tera / 1e3:.4g} PFLOP" if tera >= 100 else f"{tera:.4g} TFLOP"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


RUN = dict(zip(PARTS, (attention, forms, profile, generation, vae, text, ulysses), strict=True))


def main() -> None:
    arguments = _arguments()
    device = accelerator.find(arguments.device)
    # A step cache makes a few variants of a block, more than torch allows by itself.
    torch._dynamo.config.recompile_limit = 64
    shape = SHAPES[arguments.model]
    width, height = (int(side) for side in arguments.size.lower().replace("*", "x").split("x"))
    request = Request(
        "noise", width, height, arguments.frames, arguments.steps, guidance=5.0, shift=arguments.shift
    )
    request.check(16, 4)
    bench = Bench(
        replace(shape, layers=arguments.layers or shape.layers),
        request,
        arguments.text,
        device.torch_device,
        accelerator.dtype_from_name(arguments.dtype, device),
        arguments.rounds,
        not arguments.no_compile,
    )
    whole = bench.work(steps=request.steps, share=False)
    print(
        f"{arguments.model}, {bench.shape.layers} blocks, {width}x{height}x{request.frames}, {bench.tokens} tokens, "
        f"on {device} ({device.name}), {_name(bench.dtype)}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}\n"
        f"ceiling {bench.rate / 1e12:.4g} TFLOP/s, copies {bandwidth(bench.device) / 1e9:.4g} GB/s; "
        f"{request.steps} steps are {_flop(whole)}, {whole.seconds(bench.rate):.4g} s at the ceiling"
    )
    bench.found |= {"ceiling": bench.rate, "bandwidth": bandwidth(bench.device), "arguments": vars(arguments)}
    for part in arguments.only.split(","):
        RUN[part](bench)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(bench.found, indent=1, default=str))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=tuple(SHAPES), help="t2v-1.3B; without it on a CPU as --tiny")
    parser.add_argument("--tiny", action="store_true", help="a small model and video, for a CPU")
    parser.add_argument("--layers", type=int, help="fewer blocks")
    parser.add_argument("--size", default="832x480")
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--shift", type=float, default=3.0)
    parser.add_argument("--text", type=int, default=512, help="tokens of a prompt with its padding")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.tiny or (arguments.model is None and accelerator.find(arguments.device).kind == "cpu"):
        arguments.model, arguments.size, arguments.frames, arguments.steps = "tiny", "128x96", 9, 8
        arguments.text = 64
    arguments.model = arguments.model or "t2v-1.3B"
    unknown = set(arguments.only.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"--only has {', '.join(sorted(unknown))}; the parts are {', '.join(PARTS)}")
    return arguments


if __name__ == "__main__":
    main()
