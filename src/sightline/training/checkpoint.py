"""Checkpoints of a run and its result: which are whole, what a later run may go on from, what is written last."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sightline.data.vision_spec import record_limits
from sightline.errors import SightlineError, UsageError
from sightline.files import write_json
from sightline.models.processor import Processor
from sightline.training.config import TrainConfig, load_config, write_config
from sightline.training.meter import Meter

CONFIG = "train_config.yaml"
RESULT = "train_result.json"
_WHOLE = "sightline.json"
# Settings that change how a run is watched and stored, but not what it computes.
_FREE = {"output", "log_interval", "save_interval", "save_total_limit", "save_optimizer", "resume", "tensorboard"}
_FREE |= {"workers", "threads", "eval_interval"}
# Files of a checkpoint that say how to feed it; the adapter carries them so that it can be used alone.
_PROCESSOR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
)


class WholeCallback(TrainerCallback):
    """Marks a checkpoint as whole once everything of it is on disk."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_json(folder / _WHOLE, {"step": state.global_step, "seconds": self._meter.seconds})


def last_whole(output: Path) -> Path | None:
    """The newest checkpoint of a run that was written to its end."""
    marks = (output / "checkpoints").glob(f"checkpoint-*/{_WHOLE}")
    return max((mark.parent for mark in marks), key=lambda folder: int(folder.name.split("-")[1]), default=None)


def seconds_of(checkpoint: Path) -> float:
    """Training time, in seconds, that a checkpoint stands for."""
    return float(json.loads((checkpoint / _WHOLE).read_text(encoding="utf-8"))["seconds"])


def open_run(config: TrainConfig) -> Path | None:
    """Prepare the output folder.

    Returns:
        The checkpoint to go on from, or None to start at the beginning.

    Raises:
        UsageError: the folder holds another run, or something that is not a run.
    """
    output = config.output
    recorded = output / CONFIG
    if output.exists() and not output.is_dir():
        raise UsageError(f"output: {output} is a file; choose a folder")
    if recorded.exists():
        if config.resume == "never":
            raise UsageError(f"output: {output} holds a run already; remove it, choose another folder, or resume: auto")
        _check_same(load_config(recorded), config, output)
        return last_whole(output)
    if output.exists() and any(output.iterdir()):
        raise UsageError(f"output: {output} is not empty and not a run; choose another folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SightlineError(f"cannot make the output folder {output}: {error.strerror}") from error
    write_config(config, recorded)
    return None


def _check_same(before: TrainConfig, now: TrainConfig, output: Path) -> None:
    old, new = before.model_dump(mode="json"), now.model_dump(mode="json")
    changed = [name for name in new if name not in _FREE and old[name] != new[name]]
    if changed:
        name = changed[0]
        raise UsageError(
            f"output: {output} holds a run with {name} {old[name]!r}, now it is {new[name]!r}; "
            "choose another output folder to start a new run"
        )


def save_final(model: Any, processor: Processor, config: TrainConfig) -> None:
    """Write the adapter, or the whole model, with its processor files: beside, then moved into the run's folder."""
    output = config.output
    # PEFT and transformers write their files in place; a half-written adapter must never look whole.
    with tempfile.TemporaryDirectory(prefix=".final-", dir=output) as name:
        folder = Path(name)
        model.save_pretrained(folder, **({"save_embedding_layers": False} if config.tuner == "lora" else {}))
        for file in _PROCESSOR_FILES:
            if (processor.folder / file).exists():
                shutil.copyfile(processor.folder / file, folder / file)
        record_limits(processor.vision, processor.folder, folder)
        for path in sorted(folder.iterdir()):
            with path.open("rb") as file_to_sync:
                os.fsync(file_to_sync.fileno())
            os.replace(path, output / path.name)
