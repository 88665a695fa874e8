"""Inner products of what a model computed: enough to know, offline, how far any weighted sum is from any step's value.

`||v - sum(w * s)||^2` is a quadratic form in the products of `v` and the `s`. So a probe keeps a window of values only
as long as it runs, and writes numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


class Sampler:
    """Takes the same elements of every tensor of one size: all of it, or a fixed random share that fits in memory.

    Args:
        most: elements that are taken at most.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._places: dict[int, Tensor] = {}

    def __call__(self, value: Tensor) -> np.ndarray:
        """[n] in float32, in host memory."""
        import torch

        flat = value.detach().reshape(-1)
        size = flat.numel()
        if size > self.most:
            if size not in self._places:
                generator = torch.Generator().manual_seed(size)
                places = torch.randint(size, (self.most,), generator=generator).sort().values
                self._places[size] = places.to(flat.device)
            flat = flat[self._places[size]]
        return np.asarray(flat.float().cpu().numpy())


class Products:
    """Mean products of pairs of vectors, as they come step by step.

    Args:
        steps: how many come.
        vectors: how many each brings.
        window: how many of the last steps are kept for products with the next.

    Attributes:
        table: [vectors, steps, vectors, steps] in float64; NaN for pairs of steps further apart than the window.
    """

    def __init__(self, steps: int, vectors: int, window: int) -> None:
        self.window = window
        self.table = np.full((vectors, steps, vectors, steps), np.nan)
        self._kept: dict[int, np.ndarray] = {}

    def add(self, step: int, vectors: list[np.ndarray]) -> None:
        """Take a step's vectors, [n] each, and forget those that left the window."""
        self._kept[step] = np.stack(vectors).astype(np.float64)
        self._kept.pop(step - self.window - 1, None)
        new = self._kept[step]
        for other, old in self._kept.items():
            products = new @ old.T / new.shape[1]
            self.table[:, step, :, other] = products
            self.table[:, other, :, step] = products.T
