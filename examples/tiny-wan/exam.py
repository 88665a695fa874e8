"""Ask the model for clips and read what they show, with a reader that never sees the prompt.

    python examples/tiny-wan/exam.py runs/tiny-wan --clips 80

Single digits: every digit with every direction in turn. Two digits: only combinations that no training clip showed.
Seeds count up from `--seed`. The same reader is held against real clips of MNIST's test digits, which is the best that
any model can get here, and the autoencoder is measured on those clips. Prints JSON; `--strip PATH` draws four prompts.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from autoencoder import to_video
from clips import DIRECTIONS, Pair, draw, place, plain, subjects, withheld
from digits import fetch, split
from reader import Reader
from strip import strip

from sightline.video.tiny import SPEC, tiny_wan_folder

SHOWN = (
    "a three moving left and a seven moving up",
    "a five moving right",
    "a zero moving down",
    "an eight moving down and a four moving left",
)


def to_grey(video: np.ndarray) -> np.ndarray:
    """float [..., 3] in [0, 1] to uint8 without the colours."""
    return (video.mean(-1) * 255).round().clip(0, 255).astype(np.uint8)


def generate(pipe: Any, prompts: list[str], first_seed: int, options: argparse.Namespace) -> list[np.ndarray]:
    """One clip uint8 [F, H, W] a prompt, the first one with `first_seed`, the next with the following one."""
    clips: list[np.ndarray] = []
    for begin in range(0, len(prompts), 10):
        part = prompts[begin : begin + 10]
        seeds = range(first_seed + begin, first_seed + begin + len(part))
        frames = pipe(
            part,
            height=SPEC.height,
            width=SPEC.width,
            num_frames=SPEC.frames,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            max_sequence_length=options.text_length,
            output_type="np",
        ).frames
        clips += [to_grey(video) for video in frames]
    return clips


def questions(count: int, digits: int, seed: int) -> list[list[Pair]]:
    """What to ask for: all 40 single ones in turn, or random withheld combinations of two."""
    rng = Random(f"exam {seed} {digits}")
    if digits == 1:
        every = [[(digit, direction)] for direction in DIRECTIONS for digit in range(10)]
        return [every[index % 40] for index in range(count)]
    asked: list[list[Pair]] = []
    while len(asked) < count:
        pairs = subjects(rng, digits)
        if withheld(pairs):
            asked.append(pairs)
    return asked


def marks(asked: list[list[Pair]], found: list[list[Pair]]) -> dict[str, Any]:
    """Shares of clips with exactly the digits, the directions, and the digits in their directions asked for."""
    right: Counter[str] = Counter()
    for want, got in zip(asked, found, strict=True):
        right["digits"] += sorted(digit for digit, _ in want) == sorted(digit for digit, _ in got)
        right["directions"] += sorted(way for _, way in want) == sorted(way for _, way in got)
        right["both"] += sorted(want) == got
    return {name: round(right[name] / len(asked), 3) for name in ("digits", "directions", "both")}


def real(digits: list[np.ndarray], asked: list[list[Pair]], seed: int) -> list[np.ndarray]:
    rng = Random(f"real {seed}")
    return [draw(place(rng, pairs), digits, rng) for pairs in asked]


@torch.no_grad()
def reconstruction(vae: Any, clips: list[np.ndarray]) -> float:
    """PSNR in dB over all the clips' pixels, encoded and decoded."""
    errors = []
    for begin in range(0, len(clips), 10):
        given = np.stack(clips[begin : begin + 10])
        decoded = vae.decode(vae.encode(to_video(given).to(vae.device)).latent_dist.mode()).sample
        grey = to_grey((decoded.cpu().permute(0, 2, 3, 4, 1).numpy() + 1) / 2)
        errors.append(((grey.astype(float) - given) ** 2).mean())
    return 10 * math.log10(255**2 / float(np.mean(errors)))


def examine(options: argparse.Namespace) -> dict[str, Any]:
    from diffusers import UniPCMultistepScheduler, WanPipeline

    mnist = fetch(options.out.parent / "mnist")
    pipe = WanPipeline.from_pretrained(options.model, torch_dtype=torch.float32).to(options.device)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, flow_shift=options.shift)
    if options.strip:
        strip(generate(pipe, list(SHOWN), options.seed, options), list(SHOWN), options.strip)
    reader, digits = Reader(mnist, options.out), split(mnist, "exam")
    names = ("clips", "seed", "steps", "guidance", "shift", "text_length")
    report: dict[str, Any] = {name: getattr(options, name) for name in names}
    for count, name in ((1, "one digit"), (2, "two digits, withheld")):
        asked = questions(options.clips, count, options.seed)
        truth = real(digits, asked, options.seed)
        report.setdefault("vae psnr", round(reconstruction(pipe.vae, truth), 2))
        started = time.perf_counter()
        clips = generate(pipe, [plain(pairs) for pairs in asked], options.seed, options)
        seconds = time.perf_counter() - started
        found = [reader.read(clip) for clip in clips]
        report[name] = marks(asked, found) | {"seconds a clip": round(seconds / len(asked), 2)}
        report[f"{name}, real clips"] = marks(asked, [reader.read(clip) for clip in truth])
        if options.verbose:
            for want, got in zip(asked, found, strict=True):
                print("right" if sorted(want) == got else "wrong", plain(want), "->", plain(got), sep="\t")
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder of the training, where the reader is kept")
    parser.add_argument("--model", type=Path, default=None, help="default: the packaged one")
    parser.add_argument("--clips", type=int, default=80, help="of one digit, and as many of two")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=SPEC.steps)
    parser.add_argument("--guidance", type=float, default=SPEC.guidance)
    parser.add_argument("--shift", type=float, default=SPEC.shift)
    parser.add_argument("--text-length", type=int, default=SPEC.text_length)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--strip", type=Path)
    parser.add_argument("--verbose", action="store_true", help="a line for every clip")
    options = parser.parse_args()
    options.model = options.model or tiny_wan_folder()
    print(json.dumps(examine(options), indent=1))


if __name__ == "__main__":
    main()
