"""Runs from rows to result: exact accumulation, schedule, validation, limits, files, and what stops them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from drawn import draw, write_data
from safetensors.torch import load_file
from transformers import Trainer

from sightline.errors import SightlineError, UsageError
from sightline.models.loading import load_model
from sightline.models.processor import load_processor
from sightline.models.prompt import IGNORED
from sightline.training import checkpoint
from sightline.training import run as run_module
from sightline.training.config import TrainConfig
from sightline.training.dataset import collate, read_samples, split
from sightline.training.run import train
from sightline.training.trainer import schedule

Settings = Callable[..., TrainConfig]


def log_of(config: TrainConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.output / "log.jsonl").read_text().splitlines()]


def adapter(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(config.output / "adapter_model.safetensors")


# ----------------------------------------------------------------------------------------------- accumulation


def accumulated(
    settings: Settings, output: Path, batch_size: int, accumulation: int
) -> dict[str, torch.Tensor]:
    # One window of the sampler, a whole epoch in one step: both see the same samples, whatever their order.
    values = {"epochs": 3, "batch_size": batch_size, "accumulation": accumulation, "lora__dropout": 0.0}
    config = settings(**values, output=output, schedule="constant", warmup_ratio=0, learning_rate=1e-3)
    assert train(config).steps == 3
    return adapter(config)


def farthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_accumulation_weighs_every_token_alike(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = accumulated(settings, tmp_path / "together", 12, 1)
    assert farthest(together, accumulated(settings, tmp_path / "parts", 1, 12)) < 1e-5
    assert farthest(together, accumulated(settings, tmp_path / "mixed", 5, 3)) < 1e-5

    # The averages of unequal batches, as the stock Trainer computes them for these models, end elsewhere.
    class Stock(run_module.SightlineTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.model_accepts_loss_kwargs = False

    monkeypatch.setattr(run_module, "SightlineTrainer", Stock)
    assert farthest(together, accumulated(settings, tmp_path / "stock", 1, 12)) > 1e-4


def test_logged_loss_is_the_mean_over_the_tokens_of_the_step(settings: Settings) -> None:
    config = settings(max_steps=1, batch_size=2, accumulation=6, lora__dropout=0.0)
    result = train(config)
    assert result.final_loss == pytest.approx(plain_loss(config, read(config)), rel=1e-5)
    assert log_of(config)[0]["loss"] == result.final_loss


def read(config: TrainConfig) -> list[Any]:
    return read_samples(config.data, load_processor(config.model))


def plain_loss(config: TrainConfig, samples: list[Any], adapter: Path | None = None) -> float:
    """Mean loss of a supervised token by the model's own forward, sample by sample, weighted by hand."""
    loaded = load_model(config.model, device="cpu", dtype="fp32", adapter=adapter)
    total, tokens = 0.0, 0
    for sample in samples:
        batch = collate([loaded.processor.encode(sample.conversation, supervise=True)])
        targets = batch.pop("shift_labels")
        with torch.no_grad():
            inputs = {name: batch[name] for name in batch if name not in ("labels", "kinds")}
            logits = loaded.module(**inputs).logits
        losses = torch.nn.functional.cross_entropy(
            logits[0], targets[0], reduction="none", ignore_index=IGNORED
        )
        total += float(losses.double().sum())
        tokens += int((targets != IGNORED).sum())
    return total / tokens


# ------------------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize("batch_size", [1, 3])
def test_validation_loss_is_that_of_the_written_adapter(settings: Settings, batch_size: int) -> None:
    config = settings(max_steps=3, batch_size=batch_size, validation_split=0.4, eval_interval=2)
    result = train(config)
    _, held = split(read(config), 0.4, config.seed)
    assert len(held) == 5
    assert result.eval_loss == pytest.approx(plain_loss(config, held, config.output), rel=1e-5)
    entries = log_of(config)
    assert [entry["step"] for entry in entries if "eval_loss" in entry] == [2, 3]
    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 2, 3]
    assert entries[-1]["eval_loss"] == result.eval_loss


def test_validation_rows_of_their_own(settings: Settings, tmp_path: Path) -> None:
    held = write_data(tmp_path / "held", 5, seed=7)
    config = settings(max_steps=1, validation=held, max_samples=4)
    result = train(config)
    samples = read_samples(held, load_processor(config.model))
    assert result.eval_loss == pytest.approx(plain_loss(config, samples, config.output), rel=1e-5)


def test_split_is_a_partition_drawn_by_the_seed(settings: Settings) -> None:
    samples = read(settings())
    training, held = split(samples, 0.25, 1)
    assert (len(training), len(held)) == (9, 3)
    assert sorted(map(id, training + held)) == sorted(map(id, samples))
    assert split(samples, 0.25, 1)[1] == held
    assert split(samples, 0.25, 2)[1] != held
    assert split(samples, 0.0, 1) == (samples, [])
    assert len(split(samples, 0.001, 1)[1]) == 1
    assert len(split(samples, 0.999, 1)[0]) == 1
    with pytest.raises(SightlineError, match="at least two samples"):
        split(samples[:1], 0.5, 1)


# --------------------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_schedule_warms_up_and_descends_to_zero(kind: str) -> None:
    factor = schedule(kind, 0.2, lambda step: step / 100)
    rates = [factor(step) for step in range(101)]
    assert 0 < rates[0] < 0.01
    assert rates[10] == pytest.approx(0.5)
    assert rates[20] == pytest.approx(1.0)
    assert max(rates) <= 1.0
    middle = {"cosine": 0.5, "linear": 0.5, "constant": 1.0}[kind]
    assert rates[60] == pytest.approx(middle)
    assert rates[40] == pytest.approx(
        {"cosine": 0.5 + math.sqrt(0.5) / 2, "linear": 0.75, "constant": 1.0}[kind]
    )
    assert rates[100] == pytest.approx(0.0 if kind != "constant" else 1.0)
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert schedule(kind, 0.0, lambda step: step / 100)(0) == pytest.approx(1.0)
    assert factor(500) == factor(100)  # time may run over


def test_rates_of_a_run_follow_the_schedule(settings: Settings) -> None:
    config = settings(max_steps=10, warmup_ratio=0.2, learning_rate=1e-3)
    train(config)
    rates = [entry["learning_rate"] for entry in log_of(config)]
    factor = schedule("cosine", 0.2, lambda step: step / 10)
    assert rates == pytest.approx([1e-3 * factor(step) for step in range(10)])


def test_time_ends_a_run_and_its_schedule(settings: Settings) -> None:
    config = settings(epochs=100_000, max_seconds=1.5, log_interval=1000)
    result = train(config)
    assert 0 < result.steps < 100_000
    last = log_of(config)[-1]
    assert last["step"] == result.steps
    assert last["learning_rate"] < 0.2 * config.base_learning_rate
    assert last["seconds_left"] == 0.0
    assert (config.output / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 12),
        ({"epochs": 2, "batch_size": 5}, 6),
        ({"epochs": 0.5}, 6),
        ({"batch_size": 2, "accumulation": 4}, 2),
        ({"max_steps": 3, "epochs": 9}, 3),
        ({"max_samples": 5}, 5),
        ({"max_steps": 15}, 15),
    ],
)
def test_number_of_steps(settings: Settings, changes: dict[str, Any], steps: int) -> None:
    config = settings(**changes, log_interval=100)
    assert train(config).steps == steps
    assert [entry["step"] for entry in log_of(config)] == [steps]  # the last step is logged in any case


# ------------------------------------------------------------------------------------------------------ files


def test_files_of_a_run(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings(max_steps=4, batch_size=3, log_interval=2, validation_split=0.25, tensorboard=True)
    result = train(config)
    names = {path.name for path in config.output.iterdir()}
    assert names >= {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "preprocessor_config.json", "train_config.yaml", "log.jsonl", "curves.png",
        "train_result.json", "tensorboard",
    }  # fmt: skip
    assert not any(name.startswith(".") for name in names)
    modes = {path.stat().st_mode for path in config.output.iterdir() if path.is_file()}
    assert len(modes) == 1
    entries = log_of(config)
    assert [entry["step"] for entry in entries] == [2, 4, 4]
    assert set(entries[0]) == {
        "step", "epoch", "loss", "grad_norm", "learning_rate", "tokens_per_second", "vision_tokens_per_second",
        "samples_per_second", "data_wait", "memory_bytes", "seconds", "seconds_left",
    }  # fmt: skip
    assert 0 < entries[0]["vision_tokens_per_second"] < entries[0]["tokens_per_second"]
    assert 0 <= entries[0]["data_wait"] <= 1
    assert entries[0]["memory_bytes"] > 10**8
    assert (config.output / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((config.output / "train_result.json").read_text())["steps"] == result.steps == 4
    assert result.samples == 12
    assert _scalars(config.output / "tensorboard") >= {
        "loss",
        "eval_loss",
        "learning_rate",
        "tokens_per_second",
    }
    console = capsys.readouterr().err
    for part in (
        "step 2/4  loss ",
        "lr ",
        "tok/s",
        "vision)",
        "samples/s",
        "data wait",
        "memory",
        "GiB",
        "left 0:00",
    ):
        assert part in console
    assert "step 4  validation loss" in console


def _scalars(folder: Path) -> set[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return set(events.Tags()["scalars"])


def test_pixel_limit_is_recorded_and_used_again(
    settings: Settings, tmp_path: Path, tiny_folder: Path
) -> None:
    draw(tmp_path / "large.png", 280, 280, "red", 1)
    data = tmp_path / "data.jsonl"
    messages = [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "red"}]
    data.write_text(json.dumps({"messages": messages, "images": ["large.png"]}))
    config = settings(data=data, max_steps=1, max_pixels=6 * 28 * 28, min_pixels=28 * 28)
    train(config)
    assert json.loads((config.output / "preprocessor_config.json").read_text())["max_pixels"] == 6 * 28 * 28
    limits = {}
    for adapter_folder in (None, config.output):
        vision = load_model(tiny_folder, device="cpu", dtype="fp32", adapter=adapter_folder).processor.vision
        limits[adapter_folder] = (vision.max_pixels, vision.min_pixels, vision.max_pixels_source)
    assert limits[config.output] == (6 * 28 * 28, 28 * 28, "checkpoint")
    assert limits[None][0] == 112 * 112
    given = load_model(tiny_folder, device="cpu", dtype="fp32", adapter=config.output, max_pixels=9 * 28 * 28)
    assert (given.processor.vision.max_pixels, given.processor.vision.max_pixels_source) == (
        9 * 28 * 28,
        "option",
    )


# ------------------------------------------------------------------------------------------------ faulty rows


@pytest.fixture
def faulty(tmp_path: Path) -> Path:
    """Rows 2 (image is not there) and 5 (no answer) of 6 are faulty."""
    path = write_data(tmp_path / "faulty", 6)
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace("1a.png", "absent.png")
    lines[4] = json.dumps({"messages": [{"role": "user", "content": "hello?"}]})
    path.write_text("\n".join(lines))
    return path


def test_faulty_row_stops_before_the_first_step(
    settings: Settings, faulty: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(data=faulty)
    # Nor has it waited for the weights.
    monkeypatch.setattr(run_module, "load_model", None)
    with pytest.raises(
        SightlineError, match=r"2 of 6 rows are faulty, first .*data\.jsonl:2: .*absent\.png"
    ) as error:
        train(config)
    assert error.value.exit_code == 1
    assert "\n" not in str(error.value)
    console = capsys.readouterr().err
    assert "data.jsonl:2: " in console
    assert "data.jsonl:5: " in console
    assert "step 1" not in console
    assert not (config.output / "log.jsonl").exists()


def test_faulty_rows_can_be_left_out(
    settings: Settings, faulty: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(settings(data=faulty, on_bad_row="skip"))
    assert (result.steps, result.samples) == (4, 4)
    console = capsys.readouterr().err
    assert "2 of 6 rows: left out as faulty" in console
    assert "data.jsonl:5: " in console


def test_nothing_left_to_learn_from(settings: Settings, faulty: Path, tmp_path: Path) -> None:
    faulty.write_text(faulty.read_text().splitlines()[4])
    with pytest.raises(SightlineError, match="holds no row to learn from"):
        train(settings(data=faulty, on_bad_row="skip"))
    with pytest.raises(SightlineError, match=r"cannot read .*absent\.jsonl"):
        train(settings(data=tmp_path / "absent.jsonl"))


def test_sample_over_the_length_is_a_faulty_row(settings: Settings) -> None:
    config = settings()
    lengths = [sample.tokens.total for sample in read(config)]
    limit = sorted(lengths)[-2]
    with pytest.raises(SightlineError, match=rf"1 of 12 rows are faulty, .* more than {limit}"):
        train(settings(max_length=limit))
    assert train(settings(max_length=limit, on_bad_row="skip")).samples == 11


@pytest.mark.parametrize("workers", [0, 1])
def test_picture_that_breaks_after_the_check_is_named(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    data = write_data(tmp_path / "late", 4)
    original = run_module.load_data

    def then_break(*args: Any) -> Any:
        samples = original(*args)
        (data.parent / "0.png").unlink()
        return samples

    monkeypatch.setattr(run_module, "load_data", then_break)
    with pytest.raises(SightlineError, match=r"data\.jsonl:1: .*0\.png") as error:
        train(settings(data=data, workers=workers))
    assert "Traceback" not in str(error.value)
    assert "\n" not in str(error.value)


# ----------------------------------------------------------------------------------------------------- others


def test_lost_model_stops_the_run_and_leaves_the_last_good_checkpoint(settings: Settings) -> None:
    config = settings(max_steps=30, learning_rate=1e30, schedule="constant", warmup_ratio=0.1, save_interval=1,
                      max_grad_norm=1e30, tuner="full")  # fmt: skip
    with pytest.raises(SightlineError, match=r"loss became nan; lower learning_rate"):
        train(config)
    assert not (config.output / "model.safetensors").exists()
    for folder in (config.output / "checkpoints").glob("*/sightline.json"):
        tensors = load_file(folder.parent / "model.safetensors")
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_same_seed_same_run_other_seed_other_run(settings: Settings, tmp_path: Path) -> None:
    values = {"max_steps": 3, "lora__dropout": 0.3}
    results = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(len(results))  # what happened before in the process does not matter
        config = settings(**values, seed=seed, output=tmp_path / name)
        train(config)
        results.append(adapter(config))
    assert all(results[0][name].equal(results[1][name]) for name in results[0])
    assert not all(results[0][name].equal(results[2][name]) for name in results[0])


def test_checkpointed_activations_give_the_same_run(settings: Settings, tmp_path: Path) -> None:
    values = {"max_steps": 3, "lora__dropout": 0.2, "freeze__vision": False, "freeze__merger": False}
    runs = []
    for flag in (False, True):
        config = settings(**values, gradient_checkpointing=flag, output=tmp_path / str(flag))
        train(config)
        runs.append(adapter(config))
    assert farthest(*runs) < 1e-5


def test_loader_processes_change_nothing(settings: Settings, tmp_path: Path) -> None:
    runs = []
    for workers in (0, 2):
        config = settings(
            epochs=2, batch_size=2, lora__dropout=0.2, workers=workers, output=tmp_path / str(workers)
        )
        train(config)
        runs.append(adapter(config))
    assert farthest(*runs) == 0.0


def test_devices_and_dtypes_that_cannot_train(settings: Settings) -> None:
    with pytest.raises(UsageError, match="fp16 trains only on CUDA and NPU"):
        train(settings(dtype="fp16"))
    with pytest.raises(UsageError, match=r"not on this machine|names one card"):
        train(settings(device="cuda:7"))


def test_it_learns(settings: Settings) -> None:
    config = settings(epochs=12, batch_size=4, learning_rate=1e-2)
    train(config)
    losses = [entry["loss"] for entry in log_of(config)]
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])


def test_our_sampler_is_the_one_in_use(settings: Settings) -> None:
    assert run_module.SightlineTrainer._get_train_sampler is not Trainer._get_train_sampler


def test_second_run_is_kept_out_of_the_folder(settings: Settings) -> None:
    config = settings(max_steps=1)
    with (
        checkpoint.claim(config.output),
        pytest.raises(SightlineError, match="another run is writing to .*choose another output"),
    ):
        train(config)
    assert train(config).steps == 1
