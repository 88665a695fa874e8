"""A training run from its configuration to its result, top to bottom as it happens."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import PrinterCallback, set_seed

from sightline.errors import SightlineError, UsageError
from sightline.files import write_json
from sightline.hardware.accelerator import Accelerator, dtype_from_name, find
from sightline.models import attention
from sightline.models.loading import check_weights, load_model
from sightline.models.processor import Processor, load_processor
from sightline.models.quantization.module import quantization_of
from sightline.progress import note, set_quiet
from sightline.training import checkpoint
from sightline.training.config import TrainConfig
from sightline.training.curves import draw_curves
from sightline.training.dataset import Sample, SampleDataset, collate, read_samples, split
from sightline.training.log import LogCallback, read_log
from sightline.training.loss import install_token_loss
from sightline.training.meter import Meter
from sightline.training.trainer import SightlineTrainer, training_arguments
from sightline.training.tuner import apply_tuner, learning_parameters


@dataclass(frozen=True)
class TrainResult:
    """What a run reached. Seconds count the steps alone, resumed runs included; memory is the peak in bytes."""

    output: str
    steps: int
    samples: int
    train_seconds: float
    samples_per_second: float
    peak_memory_bytes: int
    final_loss: float
    eval_loss: float | None
    trainable_parameters: int


def train(config: TrainConfig) -> TrainResult:
    """Fine-tune a model as configured. Running it again goes on from the last whole checkpoint.

    Raises:
        SightlineError: a fault in configuration, model or data, found before the first step.
    """
    _quiet_libraries()
    accelerator = _accelerator(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    first = _first_process_first(accelerator)
    with (
        checkpoint.claim(config.output) if int(os.environ.get("RANK", "0")) == 0 else contextlib.nullcontext()
    ):
        with first:
            resume_from = checkpoint.open_run(config)
        finished = config.output / checkpoint.RESULT
        if finished.exists():
            note(f"{config.output} is finished already; choose another output folder to train again")
            result = TrainResult(**json.loads(finished.read_text(encoding="utf-8")))
        else:
            result = _run(config, accelerator, resume_from)
    _leave_together()
    return result


def _leave_together() -> None:
    """Under torchrun, wait for the process that writes the result, and end the connection before the process ends.

    Whoever left earlier would have torchrun stop the others, and gloo's threads abort a process that ends over them.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def _check_float(folder: str | Path) -> None:
    kind = quantization_of(folder)
    if kind is not None:
        raise SightlineError(
            f"{folder} is in {kind}, which cannot learn; train the model that it was made from"
        )


def _run(config: TrainConfig, accelerator: Accelerator, resume_from: Path | None) -> TrainResult:
    """The run itself, from its rows to its result."""
    dtype = dtype_from_name(config.dtype, accelerator)
    # Rows before weights: a large model takes minutes to load, a faulty row should not wait for it.
    processor = load_processor(config.model, max_pixels=config.max_pixels, min_pixels=config.min_pixels)
    check_weights(config.model)
    _check_float(config.model)
    training, validation = load_data(config, processor)
    module = load_model(
        config.model, device="cpu", dtype=dtype, attention=attention.register(), processor=processor
    ).module
    install_token_loss(module)
    set_seed(config.seed)  # an adapter starts from random numbers
    model = apply_tuner(module, config)
    learning_by_part = learning_parameters(model)
    learning = sum(learning_by_part.values())
    note(
        f"training {learning / 1e6:.2f} M of {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M parameters "
        f"on {len(training)} samples, {accelerator.name}, {str(dtype).removeprefix('torch.')}"
    )

    meter = Meter()
    dataset = SampleDataset(training, processor)
    data = checkpoint.fingerprint(training)
    log = LogCallback(config.output, meter, accelerator, config.max_seconds, config.tensorboard)
    trainer = SightlineTrainer(
        config,
        meter,
        dataset.lengths,
        model=model,
        args=training_arguments(
            config, dtype, accelerator.kind == "cpu", vision_learns=set(learning_by_part) != {"language"}
        ),
        train_dataset=dataset,
        eval_dataset=SampleDataset(validation, processor) if validation else None,
        data_collator=collate,
        callbacks=[log, checkpoint.WholeCallback(meter, config.save_total_limit, data)],
    )
    trainer.remove_callback(PrinterCallback)
    if resume_from is not None:
        checkpoint.check_mark(resume_from, data, trainer.args.world_size)
        note(f"going on from {resume_from}")
        meter.earlier = checkpoint.seconds_of(resume_from)
    trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
    seconds = meter.seconds
    eval_loss = _final_eval_loss(trainer) if validation else None
    log.close()
    meter.samples = trainer.over_processes(meter.samples)
    result = _result(config, trainer.state, meter, seconds, accelerator, eval_loss, learning)
    if trainer.is_world_process_zero():
        checkpoint.save_final(_in_dtype(model, config, dtype), processor, config)
        _finish(config, result)
    return result


def _final_eval_loss(trainer: SightlineTrainer) -> float:
    for entry in trainer.state.log_history:
        if "eval_loss" in entry and entry["step"] == trainer.state.global_step:
            return float(entry["eval_loss"])
    return trainer.evaluate()["eval_loss"]


def _first_process_first(accelerator: Accelerator) -> Any:
    """Under torchrun, what one process writes the others must find; and one of them speaks for all."""
    from accelerate import PartialState

    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return contextlib.nullcontext()
    state = PartialState(cpu=accelerator.kind == "cpu")
    if not state.is_main_process:
        set_quiet()
    return state.main_process_first()


def load_data(config: TrainConfig, processor: Processor) -> tuple[list[Sample], list[Sample]]:
    """(training samples, validation samples), every row checked."""

    def read(path: Path, limit: int | None) -> list[Sample]:
        return read_samples(
            path,
            processor,
            media_root=config.media_root,
            max_samples=limit,
            max_length=config.max_length,
            on_bad_row=config.on_bad_row,
        )

    training, held = split(read(config.data, config.max_samples), config.validation_split, config.seed)
    if config.validation is not None:
        held = read(config.validation, None)
    return training, held


def _accelerator(config: TrainConfig) -> Accelerator:
    if config.device and ":" in config.device:
        raise UsageError(
            f"device: {config.device} names one card; choose cards with the variable "
            f"{find(config.device).visible_devices_variable} and set device: {config.device.split(':')[0]}"
        )
    accelerator = find(config.device)
    if config.dtype == "fp16" and accelerator.kind == "cpu":
        raise UsageError("dtype: fp16 trains only on CUDA and NPU devices; use bf16 or fp32 on a CPU")
    return accelerator


def _in_dtype(model: Any, config: TrainConfig, dtype: torch.dtype) -> Any:
    """A fully trained model is written in the checkpoint's precision; an adapter keeps its float32."""
    return model.to(dtype) if config.tuner == "full" else model


def _finish(config: TrainConfig, result: TrainResult) -> None:
    """Curves and the result file, which says that the run is finished and so comes last."""
    entries = read_log(config.output / checkpoint.LOG)
    if any("loss" in entry for entry in entries):
        draw_curves(entries, config.output / "curves.png")
    write_json(config.output / checkpoint.RESULT, asdict(result))


def _result(
    config: TrainConfig,
    state: Any,
    meter: Meter,
    seconds: float,
    accelerator: Accelerator,
    eval_loss: float | None,
    learning: int,
) -> TrainResult:
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    return TrainResult(
        output=str(config.output),
        steps=state.global_step,
        samples=meter.samples,
        train_seconds=round(seconds, 2),
        samples_per_second=round(meter.samples / max(seconds - meter.earlier, 1e-9), 3),
        peak_memory_bytes=accelerator.peak_memory(),
        final_loss=losses[-1] if losses else float("nan"),
        eval_loss=eval_loss,
        trainable_parameters=learning,
    )


def _quiet_libraries() -> None:
    """Only our own lines on the console: the libraries' bars and notices say nothing a user can act on."""
    import warnings

    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"(torch|peft|transformers|accelerate)\..*")
