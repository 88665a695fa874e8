"""Two processes under torchrun (gloo, CPU) are one process with twice the batches."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from sightline.training.config import TrainConfig
from sightline.training.run import train

Settings = Callable[..., TrainConfig]


def torchrun(config: TrainConfig, file: Path) -> subprocess.CompletedProcess[str]:
    file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--rdzv-backend",
        "c10d",
    ]
    command += ["--rdzv-endpoint", "localhost:0", "-m", "sightline.cli.app", "train", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        timeout=200,
    )


def test_two_processes_equal_one_with_twice_the_batches(settings: Settings, tmp_path: Path) -> None:
    # Vision learns too, and the third of the four kinds of rows has no picture: one process may have none to see.
    values = {"max_steps": 4, "lora__dropout": 0.0, "freeze__vision": False, "freeze__merger": False}
    values |= {"validation_split": 0.25, "learning_rate": 1e-3, "max_seconds": 1000, "schedule": "constant"}
    values |= {"save_interval": 2, "tensorboard": True}
    one = settings(**values, accumulation=2, output=tmp_path / "one")
    expected = train(one)
    two = settings(**values, accumulation=1, output=tmp_path / "two")
    run = torchrun(two, tmp_path / "two.yaml")
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stderr.count("step 4/4") == 1  # one process speaks
    assert run.stdout.count("written to") == 1
    before = load_file(one.output / "adapter_model.safetensors")
    after = load_file(two.output / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    difference = max(float((before[name] - after[name]).abs().max()) for name in before)
    assert difference < 1e-5
    result = yaml.safe_load((two.output / "train_result.json").read_text())
    assert result["samples"] == expected.samples == 8
    assert result["eval_loss"] == pytest.approx(expected.eval_loss, rel=1e-5)
    assert result["final_loss"] == pytest.approx(expected.final_loss, rel=1e-5)
    assert len(list((two.output / "tensorboard").iterdir())) == 1
    marks = two.output.glob("checkpoints/*/sightline.json")
    assert sorted(mark.parent.name for mark in marks) == ["checkpoint-2", "checkpoint-4"]
