"""Our configuration in the Trainer's words."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import pytest
import torch
from transformers import TrainingArguments

from sightline.training.config import TrainConfig
from sightline.training.trainer import training_arguments


def test_a_process_trains_on_one_of_several_cards(
    settings: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As transformers does it where it finds four CUDA cards and no torchrun.
    def four_cards(arguments: TrainingArguments) -> torch.device:
        arguments._n_gpu = 4
        return torch.device("meta")

    found = cached_property(four_cards)
    found.__set_name__(TrainingArguments, "_setup_devices")
    monkeypatch.setattr(TrainingArguments, "_setup_devices", found)
    arguments = training_arguments(settings(batch_size=2), torch.float32, use_cpu=False, vision_learns=False)
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == 2
