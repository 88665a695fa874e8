"""What is asked in a round: for each number of clients a file of prompts that no cache has seen, the same for all."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from online.contestants import Limits
from sightline.bench.serve.pictures import random_picture
from sightline.bench.serve.words import WORDS

WARM = 1  # prompts before each level


@dataclass(frozen=True)
class Workload:
    """One model's load.

    Attributes:
        clients: how many prompts are asked, by requests open at a time.
        image: (width, height) of each prompt's picture; words: of its text; new_tokens: of each answer, exactly.
    """

    name: str
    clients: dict[int, int]
    image: tuple[int, int]
    words: int
    new_tokens: int
    rounds: int

    @property
    def limits(self) -> Limits:
        # A visual token covers 28x28 pixels; words may be several tokens; a template comes on top.
        vision = -(-self.image[0] // 28) * -(-self.image[1] // 28)
        return Limits(vision + 4 * self.words + self.new_tokens + 128, max(self.clients), self.image)

    def write(self, folder: Path) -> None:
        """One jsonl a level, with `WARM` prompts before those that count."""
        random = np.random.default_rng(secrets.randbits(64))
        for clients, count in self.clients.items():
            lines = []
            for number in range(WARM + count):
                picture = folder / f"{clients}-{number}.jpg"
                picture.write_bytes(random_picture(random, self.image))
                text = " ".join(WORDS[index] for index in random.integers(0, len(WORDS), self.words))
                row = {
                    "messages": [{"role": "user", "content": f"<image>{text}"}],
                    "images": [picture.name],
                }
                lines.append(json.dumps(row))
            rows_of(folder, clients).write_text("\n".join(lines), encoding="utf-8")


def rows_of(folder: Path, clients: int) -> Path:
    return folder / f"{clients}.jsonl"


# Sized so that a whole run with all four contestants takes about 25 minutes on two cores.
WORKLOADS = {
    "demo": Workload("demo", {1: 12, 4: 32, 16: 64}, (224, 224), words=24, new_tokens=32, rounds=3),
    "2b": Workload("2b", {1: 3, 4: 8, 16: 16}, (448, 448), words=24, new_tokens=48, rounds=1),
}
QUICK = {
    "demo": Workload("demo", {1: 3, 4: 8}, (112, 112), words=8, new_tokens=8, rounds=1),
    "2b": Workload("2b", {1: 1, 4: 4}, (224, 224), words=8, new_tokens=8, rounds=1),
}
