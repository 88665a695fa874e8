"""Read a clip without being told what it should show: which digits move in which directions.

Each of the four directions is looked at by itself. Shifting every frame back along it by the digits' speed makes a
digit that moves that way stand still, so that it survives in a low quantile over the frames, and everything else is
wiped out. What is left is cut out and told by a small network that was trained on MNIST in a minute.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import torch
from clips import BOX, DIRECTIONS, FRAMES, SIZE, SPEED, Pair
from digits import read
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

QUANTILE = 0.3  # over the frames: a digit has to be there in seven of ten
LEAST = 0.3  # of a digit's mean light, for something to count as one
TRAVELLED = SPEED * (FRAMES - 1)


class Reader:
    """`read` gives the digits and directions of a clip; the network is kept in the folder once it is trained."""

    def __init__(self, mnist: Path, folder: Path) -> None:
        self.network = _network()
        pictures, labels = read(mnist, "train")
        self.least = LEAST * float(pictures.mean()) * 28 * 28
        kept = folder / "reader.safetensors"
        if not kept.is_file():
            _train(self.network, pictures, labels)
            save_file(self.network.state_dict(), kept)
        self.network.load_state_dict(load_file(kept))
        self.network.eval()

    def read(self, clip: np.ndarray) -> list[Pair]:
        """The sorted (digit, direction) of everything that moves in a clip uint8 [F, H, W]."""
        found = []
        for direction in DIRECTIONS:
            still = stabilized(clip, direction)
            while (patch := self._brightest(still)) is not None:
                found.append((self._digit(patch), direction))
        return sorted(found)

    def _brightest(self, picture: np.ndarray) -> np.ndarray | None:
        """The square of a digit's size with the most light, taken out of the picture; None when it is too dark."""
        light = np.pad(picture.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        sums = light[BOX:, BOX:] - light[:-BOX, BOX:] - light[BOX:, :-BOX] + light[:-BOX, :-BOX]
        row, column = np.unravel_index(sums.argmax(), sums.shape)
        if sums[row, column] < self.least:
            return None
        window = picture[row : row + BOX, column : column + BOX]
        patch = window.copy()
        window[:] = 0
        return patch

    @torch.no_grad()
    def _digit(self, patch: np.ndarray) -> int:
        return int(self.network(torch.from_numpy(centred(patch)[None, None]).float() / 255).argmax())


def stabilized(clip: np.ndarray, direction: str) -> np.ndarray:
    """float32 [H + 64, W + 64]: the low quantile of the frames after undoing a move along the direction."""
    canvas = np.zeros((len(clip), SIZE + 2 * TRAVELLED, SIZE + 2 * TRAVELLED), np.uint8)
    across, down = DIRECTIONS[direction]
    for frame, picture in enumerate(clip):
        x, y = (TRAVELLED - step * SPEED * frame for step in (across, down))
        canvas[frame, y : y + SIZE, x : x + SIZE] = picture
    return np.quantile(canvas, QUANTILE, axis=0, method="nearest").astype(np.float32)


def centred(patch: np.ndarray) -> np.ndarray:
    """float32 [24, 24] with the centre of mass in the middle, as MNIST's digits are."""
    rows, columns = np.indices(patch.shape)
    light = patch.sum()
    shift = [round((BOX - 1) / 2 - float((axis * patch).sum() / light)) for axis in (rows, columns)]
    padded = np.pad(patch, BOX)
    return padded[BOX - shift[0] : 2 * BOX - shift[0], BOX - shift[1] : 2 * BOX - shift[1]].astype(np.float32)


def _network() -> nn.Sequential:
    layers: list[nn.Module] = []
    for given, made in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(given, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 9, 10))


def _train(network: nn.Module, pictures: np.ndarray, labels: np.ndarray, batch: int = 128) -> None:
    """Two looks at MNIST's training digits, moved by up to two pixels and made a little darker or brighter."""
    rng, generator = np.random.default_rng(0), Random(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    network.train()
    for _epoch in range(2):
        order = rng.permutation(len(pictures))
        for begin in range(0, len(order) - batch, batch):
            chosen = np.sort(order[begin : begin + batch])
            y, x = (2 + generator.randint(-2, 2) for _ in range(2))
            values = torch.from_numpy(pictures[chosen][:, None, y : y + BOX, x : x + BOX]).float() / 255
            values = (values * generator.uniform(0.7, 1.1)).clamp(0, 1)
            loss = functional.cross_entropy(network(values), torch.from_numpy(labels[chosen]).long())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = 5e-4
