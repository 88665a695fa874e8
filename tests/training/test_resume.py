"""A run that was interrupted and resumed is the run that was not, bit for bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from transformers import TrainerCallback

from sightline.errors import SightlineError, UsageError
from sightline.training import run as run_module
from sightline.training.config import TrainConfig
from sightline.training.run import train

Settings = Callable[..., TrainConfig]
# Of a log line, what does not depend on the clock.
_EXACT = ("step", "epoch", "loss", "grad_norm", "learning_rate", "eval_loss")


class _Interrupt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


def interrupted(monkeypatch: pytest.MonkeyPatch, config: TrainConfig, step: int) -> None:
    """Run `config` until `step` steps are done, and stop it as Ctrl-C does."""

    class Trainer(run_module.SightlineTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(_Interrupt(step))

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "SightlineTrainer", Trainer)
        with pytest.raises(KeyboardInterrupt):
            train(config)


def log_of(config: TrainConfig) -> list[dict[str, Any]]:
    lines = (config.output / "log.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key in _EXACT} for line in lines]


def weights(config: TrainConfig, name: str = "adapter_model.safetensors") -> dict[str, Any]:
    return load_file(config.output / name)


def assert_same_run(first: TrainConfig, second: TrainConfig, name: str = "adapter_model.safetensors") -> None:
    expected, actual = weights(first, name), weights(second, name)
    assert expected.keys() == actual.keys()
    different = [key for key in expected if not expected[key].equal(actual[key])]
    assert different == []
    assert log_of(first) == log_of(second)


@pytest.mark.parametrize(
    ("workers", "stop", "changes"),
    [
        pytest.param(0, 4, {}, id="in the first epoch"),
        pytest.param(0, 7, {"batch_size": 2, "accumulation": 1}, id="at the end of an epoch"),
        pytest.param(2, 9, {}, id="in the third epoch, loader processes"),
        pytest.param(0, 5, {"freeze__merger": False, "gradient_checkpointing": True}, id="merger learns"),
    ],
)
def test_resumed_run_equals_uninterrupted_run(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
    stop: int,
    changes: dict[str, Any],
) -> None:
    # 12 samples: 3 epochs of 4 steps (6 where nothing is accumulated), with dropout, saved every 3 steps.
    values = {"epochs": 3, "batch_size": 1, "accumulation": 3, "lora__dropout": 0.3, "workers": workers}
    values |= {"save_interval": 3, "log_interval": 2, "validation_split": 0.0} | changes
    whole = settings(**values, output=tmp_path / "whole")
    train(whole)
    parted = settings(**values, output=tmp_path / "parted")
    interrupted(monkeypatch, parted, stop)
    assert not (parted.output / "adapter_model.safetensors").exists()
    train(parted)
    assert_same_run(whole, parted)
    steps = [entry["step"] for entry in log_of(parted)]
    assert steps == sorted(set(steps))


def test_validation_and_full_training_resume_exactly(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"tuner": "full", "epochs": 2, "accumulation": 2, "save_interval": 2, "eval_interval": 2}
    values |= {
        "validation_split": 0.3,
        "freeze__vision": False,
        "freeze__merger": False,
        "learning_rate": 1e-3,
    }
    whole, parted = (
        settings(**values, output=tmp_path / "whole"),
        settings(**values, output=tmp_path / "parted"),
    )
    train(whole)
    interrupted(monkeypatch, parted, 5)
    train(parted)
    assert_same_run(whole, parted, "model.safetensors")


def test_looking_at_the_validation_loss_changes_nothing(settings: Settings, tmp_path: Path) -> None:
    values = {"max_steps": 4, "lora__dropout": 0.3, "validation_split": 0.3}
    often = settings(**values, eval_interval=1, output=tmp_path / "often")
    never = settings(**values, output=tmp_path / "never")
    train(often)
    train(never)
    expected, actual = weights(often), weights(never)
    assert all(expected[key].equal(actual[key]) for key in expected)


def test_half_written_checkpoint_is_ignored(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"max_steps": 6, "save_interval": 2, "lora__dropout": 0.2}
    whole, parted = (
        settings(**values, output=tmp_path / "whole"),
        settings(**values, output=tmp_path / "parted"),
    )
    train(whole)
    interrupted(monkeypatch, parted, 5)
    checkpoints = parted.output / "checkpoints"
    (checkpoints / "checkpoint-4" / "sightline.json").unlink()
    (checkpoints / "checkpoint-4" / "adapter_model.safetensors").write_bytes(b"half")
    (checkpoints / "checkpoint-9").mkdir()  # a later one that was only begun
    (parted.output / ".final-abc").mkdir()
    train(parted)
    assert_same_run(whole, parted)
    assert not (checkpoints / "checkpoint-9").exists()
    assert not list(parted.output.glob(".final-*"))


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt"])
def test_checkpoint_that_was_cut_later_is_left_out(
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    values = {"max_steps": 6, "save_interval": 2}
    whole, parted = settings(**values, output=tmp_path / "w"), settings(**values, output=tmp_path / "p")
    train(whole)
    interrupted(monkeypatch, parted, 5)
    file = parted.output / "checkpoints" / "checkpoint-4" / name
    file.write_bytes(file.read_bytes()[:-100])
    train(parted)
    assert f"{file} is damaged; leaving this checkpoint out" in capsys.readouterr().err
    assert_same_run(whole, parted)


@pytest.mark.parametrize("limit", [1, 2])
def test_only_the_last_checkpoints_are_kept(settings: Settings, limit: int) -> None:
    config = settings(max_steps=5, save_interval=1, save_total_limit=limit)
    train(config)
    kept = sorted(folder.name for folder in (config.output / "checkpoints").iterdir())
    assert kept == [f"checkpoint-{step}" for step in range(6 - limit, 6)]


@pytest.mark.parametrize(
    ("field", "change"),
    [("learning_rate", {"learning_rate": 3e-3}), ("lora", {"lora__r": 4}), ("batch_size", {"batch_size": 2})],
)
def test_other_settings_are_refused_by_name(settings: Settings, field: str, change: dict[str, Any]) -> None:
    train(settings(max_steps=1))
    with pytest.raises(UsageError, match=rf"holds a run with {field}\b.*choose another output folder"):
        train(settings(max_steps=1, **change))


def test_other_rows_are_refused(
    settings: Settings, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data.jsonl"
    lines = rows.read_text().splitlines()
    data.write_text("\n".join(lines))
    values = {"data": data, "media_root": rows.parent, "max_steps": 4, "save_interval": 1}
    interrupted(monkeypatch, settings(**values), 2)
    data.write_text("\n".join(lines[1:] + lines[:1]))
    with pytest.raises(SightlineError, match=r"the training rows are not those that .* began with"):
        train(settings(**values))


def test_other_number_of_processes_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(max_steps=3, save_interval=1)
    interrupted(monkeypatch, config, 2)
    mark = config.output / "checkpoints/checkpoint-2/sightline.json"
    mark.write_text(mark.read_text().replace('"processes": 1', '"processes": 4'))
    with pytest.raises(SightlineError, match="was trained by 4 processes, now there are 1"):
        train(config)


def test_how_a_run_is_watched_may_change(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"max_steps": 6, "lora__dropout": 0.2}
    whole = settings(**values, output=tmp_path / "whole")
    train(whole)
    parted = {**values, "output": tmp_path / "parted"}
    interrupted(monkeypatch, settings(**parted, save_interval=2, log_interval=2), 3)
    train(settings(**parted, save_interval=1, log_interval=1, save_total_limit=9, workers=1))
    expected, actual = weights(whole), weights(settings(**parted))
    assert all(expected[key].equal(actual[key]) for key in expected)
    saved = sorted(folder.name[-1] for folder in (tmp_path / "parted/checkpoints").iterdir())
    assert saved == ["2", "3", "4", "5", "6"]
    assert [entry["step"] for entry in log_of(settings(**parted))] == [2, 3, 4, 5, 6]


def test_finished_run_is_answered_without_training(settings: Settings) -> None:
    config = settings(max_steps=2)
    first = train(config)
    before = (config.output / "adapter_model.safetensors").stat().st_mtime_ns
    shutil.rmtree(config.output / "checkpoints", ignore_errors=True)
    assert train(config) == first
    assert (config.output / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_without_optimizer_state_steps_and_learning_rate_go_on(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"max_steps": 6, "save_interval": 2, "save_optimizer": False, "warmup_ratio": 0.5}
    whole, parted = (
        settings(**values, output=tmp_path / "whole"),
        settings(**values, output=tmp_path / "parted"),
    )
    train(whole)
    interrupted(monkeypatch, parted, 5)
    names = {path.name for path in (parted.output / "checkpoints/checkpoint-4").iterdir()}
    assert "adapter_model.safetensors" in names
    assert not names & {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    train(parted)
    rates = [[entry["learning_rate"] for entry in log_of(config)] for config in (whole, parted)]
    assert rates[0] == pytest.approx(rates[1])
    assert [entry["step"] for entry in log_of(parted)] == [1, 2, 3, 4, 5, 6]


def test_run_stopped_by_a_faulty_row_may_be_mended(settings: Settings, rows: Path) -> None:
    with pytest.raises(SightlineError, match="rows are faulty"):
        train(settings(max_steps=1, max_length=20))
    result = train(settings(max_steps=1, max_length=2000, resume="never"))
    assert result.steps == 1


def test_never_resume_refuses_a_run(settings: Settings) -> None:
    train(settings(max_steps=1))
    with pytest.raises(UsageError, match="holds a run already"):
        train(settings(max_steps=1, resume="never"))


def test_folder_with_other_things_is_refused(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="not empty and not a run"):
        train(settings())
    with pytest.raises(UsageError, match="is a file"):
        train(settings(output=tmp_path / "run" / "thesis.txt"))


def test_killed_run_resumes(settings: Settings, tmp_path: Path) -> None:
    values = {"max_steps": 400, "epochs": 1, "save_interval": 3, "lora__dropout": 0.2}
    values |= {"schedule": "constant", "warmup_ratio": 0}
    killed = settings(**values, output=tmp_path / "killed")
    file = tmp_path / "killed.yaml"
    file.write_text(yaml.safe_dump(killed.model_dump(mode="json")))
    process = subprocess.Popen(
        [sys.executable, "-m", "sightline.cli.app", "--quiet", "train", str(file)], stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    try:
        while not list(killed.output.glob("checkpoints/checkpoint-*/sightline.json")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.3)
    finally:
        process.kill()
        process.communicate()
    reached = max(int(path.name.split("-")[1]) for path in killed.output.glob("checkpoints/checkpoint-*"))
    # The same run, ended some steps later by a shorter configuration, in both folders.
    steps = reached + 3
    recorded = killed.output / "train_config.yaml"
    recorded.write_text(recorded.read_text().replace("max_steps: 400", f"max_steps: {steps}"))
    values["max_steps"] = steps
    whole = settings(**values, output=tmp_path / "whole", save_optimizer=False)
    train(whole)
    train(settings(**values, output=tmp_path / "killed"))
    assert_same_run(whole, killed)


def test_checkpoint_of_a_lost_model_is_not_marked(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ruin(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == 2:
                next(p for p in model.parameters() if p.requires_grad).data[0] = float("nan")

    class Trainer(run_module.SightlineTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(Ruin())

    config = settings(max_steps=4, save_interval=1, save_total_limit=1)
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "SightlineTrainer", Trainer)
        with pytest.raises(SightlineError, match="loss became nan"):
            train(config)
    marks = (config.output / "checkpoints").glob("*/sightline.json")
    assert [mark.parent.name for mark in marks] == ["checkpoint-1"]
    assert train(config).steps == 4
