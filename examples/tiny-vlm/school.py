"""Teach a new vision tower shapes and colours by itself, before a language model reads it.

    python examples/tiny-vlm/school.py BASE OUT --samples 100000 --epochs 5

Through a language model a tower this small learns colours in minutes and shapes hardly at all: after 120,000 samples
with a model cut to four layers it told 98 % of the colours and 20 % of the shapes. Here only the tower computes, ten
times as many pictures a second, and it gets two lessons on each. Every token must tell which pixels of its square
belong to the thing, whatever its colour; and the mean of all tokens must point at the word embeddings of the thing's
shape and colour, so that what the tower says is already in the language model's words.

BASE is a checkpoint folder with SmolLM2's embeddings (`build_base`); OUT is the same with the tower taught.
"""

from __future__ import annotations

import argparse
import functools
import math
import shutil
import sys
import time
from multiprocessing import Pool
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scene import COLORS, SHAPES, picture, single
from torch.nn import functional

from sightline.files import replacing_folder
from sightline.models.loading import load_model

SIDE, FACTOR, MASK = 84, 28, 7  # pixels of a picture, of a token, and mask cells along a token
TOKENS = (SIDE // FACTOR) ** 2
MASK_WEIGHT = 4.0
SHAPE_NAMES, COLOR_NAMES = sorted(SHAPES), sorted(COLORS)


def lesson(seed: int, index: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Picture uint8 [84, 84, 3], its background [3], the numbers of shape and colour: a function of the arguments."""
    rng = Random(f"school {seed} {index}")
    scene = single(rng)
    scene.size = SIDE
    thing = scene.things[0]
    pixels = np.asarray(picture(scene, rng))
    return pixels, np.array(scene.background), SHAPE_NAMES.index(thing.name), COLOR_NAMES.index(thing.color)


def masks(pixels: np.ndarray, backgrounds: np.ndarray) -> torch.Tensor:
    """float [B, tokens, 49]: how much of each cell of each token differs from the background."""
    away = np.abs(pixels.astype(np.int16) - backgrounds[:, None, None, :]).max(-1) > 24
    side, cell = SIDE // FACTOR, FACTOR // MASK
    cells = away.reshape(len(pixels), side * MASK, cell, side * MASK, cell).mean((2, 4))
    squares = cells.reshape(len(pixels), side, MASK, side, MASK).transpose(0, 1, 3, 2, 4)
    return torch.from_numpy(squares.reshape(len(pixels), TOKENS, MASK * MASK)).float()


def patches(pixels: np.ndarray, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """float [B * 36, 1176], in the tower's order: merge window, place in it, channel, time, row, column."""
    values = (torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255 - mean) / std
    windows = values.view(len(pixels), SIDE // FACTOR, 2, 14, SIDE // FACTOR, 2, 14, 3)
    ordered = windows.permute(0, 1, 4, 2, 5, 7, 3, 6)[:, :, :, :, :, :, None]
    return ordered.expand(-1, -1, -1, -1, -1, -1, 2, -1, -1).reshape(-1, 1176)


def turned(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A batch turned and mirrored at random: shape and colour stay."""
    pixels = np.rot90(pixels, rng.integers(4), (1, 2))
    return pixels[:, :, ::-1] if rng.integers(2) else pixels


class Words(torch.nn.Module):
    """Scores of words: how far a vector points at each word's embedding rather than at the others'."""

    def __init__(self, names: list[str], loaded: Any) -> None:
        super().__init__()
        table = loaded.module.get_input_embeddings().weight.detach().float()
        ids = [loaded.tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in names]
        rows = torch.stack([table[word].mean(0) for word in ids])
        rows = rows - rows.mean(0)
        self.register_buffer("rows", rows / rows.norm(dim=1, keepdim=True))
        self.scale = torch.nn.Parameter(torch.tensor(5.0))
        self.bias = torch.nn.Parameter(torch.zeros(len(names)))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return self.scale * vectors.float() @ self.rows.T + self.bias


class School(torch.nn.Module):
    """The tower with the two lessons' heads."""

    def __init__(self, loaded: Any) -> None:
        super().__init__()
        self.tower = loaded.module.model.visual
        self.shape = Words(SHAPE_NAMES, loaded)
        self.color = Words(COLOR_NAMES, loaded)
        width = self.shape.rows.shape[1]
        self.mask = torch.nn.Linear(width, MASK * MASK)
        self.loudness = float(
            loaded.module.get_input_embeddings().weight.detach().float().pow(2).mean().sqrt()
        )
        spec = loaded.processor.vision
        self.mean, self.std = torch.tensor(spec.image_mean), torch.tensor(spec.image_std)

    def forward(self, pixels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(shape scores, colour scores, mask scores [B, tokens, 49], tokens' root mean square)"""
        grid = torch.tensor([[1, SIDE // 14, SIDE // 14]] * len(pixels))
        with torch.autocast("cpu", torch.bfloat16):
            output = self.tower(patches(pixels, self.mean, self.std), grid_thw=grid).pooler_output
            tokens = output.view(len(pixels), TOKENS, -1)
            mask = self.mask(tokens)
        tokens = tokens.float()
        vector = tokens.mean(1) / self.loudness
        return self.shape(vector), self.color(vector), mask.float(), tokens.pow(2).mean().sqrt()


def teach(base: Path, output: Path, samples: int, epochs: int, batch: int, rate: float, seed: int) -> None:
    with Pool() as pool:
        drawn = pool.map(functools.partial(lesson, seed), range(samples), chunksize=500)
    pictures, grounds, shapes, colors = (np.stack(column) for column in zip(*drawn, strict=True))
    del drawn
    torch.manual_seed(seed)
    school = School(load_model(base, device="cpu", dtype="fp32"))
    learning = [*school.tower.parameters(), *school.mask.parameters()]
    learning += [*school.shape.parameters(), *school.color.parameters()]
    optimizer = torch.optim.AdamW(learning, lr=rate, weight_decay=0.02, fused=True)
    held = samples // 100
    steps, step, started = (samples - held) // batch * epochs, 0, time.perf_counter()
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(samples - held)
        for start in range(0, len(order) - batch + 1, batch):
            factor = min(1.0, (step + 1) / 300) * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            chosen = order[start : start + batch]
            # Turned and mirrored together with what the mask is cut from.
            pixels = np.ascontiguousarray(turned(pictures[chosen], rng))
            shape, color, mask, loudness = school(pixels)
            loss = functional.cross_entropy(shape, torch.from_numpy(shapes[chosen]))
            loss = loss + functional.cross_entropy(color, torch.from_numpy(colors[chosen]))
            target = masks(pixels, grounds[chosen])
            loss = loss + MASK_WEIGHT * functional.binary_cross_entropy_with_logits(mask, target)
            # As loud as words, or the language model hears nothing else.
            loss = loss + 0.1 * (loudness / school.loudness - 1) ** 2
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step % 250 == 0 or step == steps:
                right = examine(school, pictures[-held:], shapes[-held:], colors[-held:])
                print(
                    f"step {step}/{steps}  loss {float(loss.detach()):.3f}  shapes {right[0]:.1%}  "
                    f"colors {right[1]:.1%}  loudness {float(loudness.detach()) / school.loudness:.2f}  "
                    f"{time.perf_counter() - started:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
    write(base, school, output)


@torch.no_grad()
def examine(
    school: School, pictures: np.ndarray, shapes: np.ndarray, colors: np.ndarray
) -> tuple[float, float]:
    """Shares of right shapes and colours among pictures that were not learnt from."""
    right = np.zeros(2)
    for start in range(0, len(pictures), 250):
        part = slice(start, start + 250)
        shape, color, _, _ = school(pictures[part])
        right += (
            (shape.argmax(1).numpy() == shapes[part]).sum(),
            (color.argmax(1).numpy() == colors[part]).sum(),
        )
    return right[0] / len(pictures), right[1] / len(pictures)


def write(base: Path, school: School, output: Path) -> None:
    weights = load_file(base / "model.safetensors")
    taught = {f"visual.{name}": tensor for name, tensor in school.tower.state_dict().items()}
    for name in [name for name in weights if "visual." in name]:
        # What stands before `visual.` differs between versions of transformers.
        weights[name] = taught[name[name.index("visual.") :]].to(weights[name].dtype).contiguous()
    with replacing_folder(output) as folder:
        for path in base.iterdir():
            if path.name != "model.safetensors":
                shutil.copy(path, folder / path.name)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    teach(
        options.base,
        options.output,
        options.samples,
        options.epochs,
        options.batch_size,
        options.learning_rate,
        options.seed,
    )
