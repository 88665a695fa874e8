"""Everything that decides a demo run: what the user chose, and the training settings, in this one place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.errors import UsageError

# The kinds of questions, by their answers, in the order in which they are shown.
KINDS: dict[str, tuple[str, ...]] = {
    "yes/no": ("yes", "no"),
    "shape": ("circle", "rectangle", "triangle"),
    "color": ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow"),
}
# How often each kind is trained. Three quarters of the data set are yes/no, which teach shapes and colours slowly.
TRAINING_SHARES: dict[str, float] = {"yes/no": 1, "shape": 1, "color": 1}
# Rows prepared for each second of training: more than two CPU cores get through.
ROWS_PER_SECOND = 33
LEAST_ROWS = 240

# Pixels of a picture; those of easy-vqa (64x64) are enlarged to MIN_PIXELS: 9 vision tokens.
MIN_PIXELS = 84 * 84
MAX_PIXELS = 112 * 112

# Fields of `sightline train`; paths, time and seed are added in `training_values`.
TRAINING: dict[str, Any] = {
    "tuner": "lora",
    "lora": {"r": 16, "alpha": 32, "dropout": 0.0, "targets": "all-linear"},
    "freeze": {"vision": False, "merger": False, "language": False},
    # An accelerator is through before its time is over.
    "epochs": 6,
    "batch_size": 16,
    "learning_rate": 5e-4,
    "vision_lr": 2e-4,
    "merger_lr": 2e-4,
    "schedule": "cosine",
    "warmup_ratio": 0.03,
    "weight_decay": 0.01,
    "min_pixels": MIN_PIXELS,
    "max_pixels": MAX_PIXELS,
    "log_interval": 10,
    "save_total_limit": 1,
    "tensorboard": False,
}

# Optimizer steps between checkpoints: what an interruption may cost is half a minute on two cores.
SAVE_INTERVAL = 40

EVALUATION_BATCH = 50
# The longest right answer ("rectangle") has 3 tokens and an end.
MAX_TOKENS = 8


@dataclass(frozen=True)
class Settings:
    """What the user chose.

    Attributes:
        train_seconds: training time.
        questions: held-out questions that are measured.
        seed: of the choice of questions, of training rows and of the training.
        base: a checkpoint folder instead of the built-in model.
    """

    train_seconds: float = 240.0
    questions: int = 500
    seed: int = 0
    base: Path | None = None

    def __post_init__(self) -> None:
        if not 0 < self.train_seconds < math.inf:
            raise UsageError(f"--train-seconds must be above 0, not {self.train_seconds:g}")
        if self.questions < 12:
            raise UsageError(
                f"--questions must be at least 12, so that every kind is asked, not {self.questions}"
            )

    @property
    def rows(self) -> int:
        """Training rows to prepare."""
        return max(LEAST_ROWS, math.ceil(self.train_seconds * ROWS_PER_SECOND / 240) * 240)


def training_values(settings: Settings, model: Path, data: Path, output: Path) -> dict[str, Any]:
    """The fields of the training run, as they stand in train.yaml."""
    paths = {"model": str(model), "data": str(data), "output": str(output)}
    interval = max(1, min(SAVE_INTERVAL, round(settings.train_seconds / 6)))
    own = {"save_interval": interval, "max_seconds": settings.train_seconds, "seed": settings.seed}
    return {**paths, **TRAINING, **own}
