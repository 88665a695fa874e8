"""Random pictures that no cache has seen: soft colours under fine noise, of the bytes that photographs have."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sightline.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

FORMATS = ("jpeg", "png")
MAX_SIDE = 16384
_PATCH = 32  # pixels between two random colours
_GRAIN = 12  # of 256, the noise on top


@dataclass(frozen=True)
class Sizes:
    """(width, height) to choose from, each as often as its weight says."""

    sizes: tuple[tuple[int, int], ...]
    weights: tuple[float, ...]

    @classmethod
    def read(cls, text: str) -> Sizes:
        """Of "448x448" or "448x448:3,1280x720:1"; raises UsageError."""
        found = [re.fullmatch(r"(\d+)x(\d+)(?::(\d+(?:\.\d+)?))?", part.strip()) for part in text.split(",")]
        if not all(found):
            raise UsageError(
                f"--random-image-size is {text!r}; write WIDTHxHEIGHT, several as 448x448:3,1280x720:1"
            )
        sizes = tuple((int(one[1]), int(one[2])) for one in found if one)
        weights = tuple(float(one[3] or 1) for one in found if one)
        if not all(1 <= side <= MAX_SIDE for size in sizes for side in size) or not sum(weights):
            raise UsageError(
                f"--random-image-size is {text!r}; sides are 1 to {MAX_SIDE} pixels, weights above 0"
            )
        return cls(sizes, weights)

    def choose(self, random: np.random.Generator) -> tuple[int, int]:
        total = sum(self.weights)
        number = random.choice(len(self.sizes), p=[weight / total for weight in self.weights])
        return self.sizes[int(number)]


def random_picture(random: np.random.Generator, size: tuple[int, int], format: str = "jpeg") -> bytes:
    """An encoded picture of (width, height) that `random` has not made before."""
    import numpy as np
    import PIL.Image

    width, height = size
    colours = random.integers(0, 256, (height // _PATCH + 2, width // _PATCH + 2, 3), dtype=np.uint8)
    soft = PIL.Image.fromarray(colours).resize(size, PIL.Image.Resampling.BICUBIC)
    grain = random.integers(-_GRAIN, _GRAIN + 1, (height, width, 3), dtype=np.int16)
    pixels = np.clip(np.asarray(soft, dtype=np.int16) + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    options = {"quality": 90} if format == "jpeg" else {"compress_level": 1}
    PIL.Image.fromarray(pixels).save(file, format=format, **options)
    return file.getvalue()
