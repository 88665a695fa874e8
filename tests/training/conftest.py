"""What the tests of training share: drawn rows, and runs on a tiny model in float32 on one thread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn import write_data

from sightline.training.config import TrainConfig, parse_config


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("rows"), 12)


@pytest.fixture
def settings(tiny_folder: Path, rows: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """A configuration of a short run into a fresh folder; fields can be given, also as lora__r."""

    def build(**changes: Any) -> TrainConfig:
        values: dict[str, Any] = {
            "model": str(tiny_folder),
            "data": str(rows),
            "output": str(tmp_path / "run"),
            "device": "cpu",
            "dtype": "fp32",
            "learning_rate": 1e-2,
            "log_interval": 1,
            "tensorboard": False,
        }
        for name, value in changes.items():
            section, _, field = name.partition("__")
            if field:
                values.setdefault(section, {})[field] = value
            else:
                values[name] = str(value) if isinstance(value, Path) else value
        return parse_config(values, "the test")

    return build


@pytest.fixture(autouse=True)
def _same_start() -> None:
    torch.manual_seed(0)
