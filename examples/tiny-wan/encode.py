"""Encode clips once with the trained autoencoder, for the denoiser to learn from.

    python examples/tiny-wan/encode.py runs/tiny-wan --clips 20000

Writes `OUT/latents/00000.safetensors` and so on, 500 clips a file: the latents' means in float16 [N, 16, 5, 8, 8] and
what each clip shows. Files that exist are kept. `--every 2 --first 0` and `--first 1` share the work between two
processes. `OUT/latents.json` gets mean and standard deviation per channel, from the first file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from autoencoder import to_video
from clips import DIRECTIONS, Pair, draw, scene
from digits import fetch, split
from network import autoencoder
from safetensors.torch import load_file, save_file

PART, BATCH = 500, 10
NAMES = sorted(DIRECTIONS)


def encode(
    model: Any, digits: list[np.ndarray], seed: int, part: int, device: str
) -> dict[str, torch.Tensor]:
    """The latents of one file and its clips' digits and directions, [N, 2] each, -1 where there is no second one."""
    latents, shown = [], torch.full((2, PART, 2), -1, dtype=torch.int8)
    for begin in range(0, PART, BATCH):
        clips = []
        for index in range(begin, begin + BATCH):
            rng = Random(f"clip {seed} {part} {index}")
            movers = scene(rng)
            clips.append(draw(movers, digits, rng))
            for place, mover in enumerate(movers):
                shown[0, index, place] = mover.digit
                shown[1, index, place] = NAMES.index(mover.direction)
        with torch.no_grad():
            latents.append(model.encode(to_video(np.stack(clips)).to(device)).latent_dist.mode().half().cpu())
    return {"latents": torch.cat(latents), "digits": shown[0], "directions": shown[1]}


def pairs_of(digits: torch.Tensor, directions: torch.Tensor) -> list[Pair]:
    """The digits with their directions of one clip, as `clips` speaks of them."""
    places = zip(digits.tolist(), directions.tolist(), strict=True)
    return [(digit, NAMES[direction]) for digit, direction in places if digit >= 0]


def trained_autoencoder(out: Path, device: str) -> Any:
    model = autoencoder()
    model.load_state_dict(load_file(out / "vae.safetensors"))
    return model.to(device).eval().requires_grad_(False)


def main(out: Path, clips: int, first: int, every: int, seed: int, device: str) -> None:
    digits = split(fetch(out.parent / "mnist"), "train")
    model = trained_autoencoder(out, device)
    folder = out / "latents"
    folder.mkdir(exist_ok=True)
    for part in range(first, clips // PART, every):
        path = folder / f"{part:05}.safetensors"
        if path.is_file():
            continue
        tensors = encode(model, digits, seed, part, device)
        save_file(tensors, path.with_suffix(".writing"))
        path.with_suffix(".writing").rename(path)
        if part == 0:
            values = tensors["latents"].float()
            scale = {"mean": values.mean((0, 2, 3, 4)).tolist(), "std": values.std((0, 2, 3, 4)).tolist()}
            (out / "latents.json").write_text(json.dumps(scale, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    main(options.out, options.clips, options.first, options.every, options.seed, options.device)
