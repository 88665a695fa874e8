"""Checkpoints of a run and its result: which are whole, what a later run may go on from, what is written last."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback

from sightline.checkpoints import companions
from sightline.data.looks import media_of
from sightline.data.vision_spec import record_limits
from sightline.errors import SightlineError, UsageError
from sightline.files import make_ordinary, only_user, write_json
from sightline.models.processor import Processor
from sightline.progress import note
from sightline.training.config import TrainConfig, load_config, write_config
from sightline.training.dataset import Sample
from sightline.training.meter import Meter

CONFIG = "train_config.yaml"
RESULT = "train_result.json"
LOG = "log.jsonl"
DIVERGED = "the loss became nan; lower learning_rate, or use dtype: fp32 and look at the data"
_WHOLE = "sightline.json"
_FINAL = ".final-"
# Settings that change how a run is watched and stored, but not what it computes.
_FREE = {
    "output",
    "log_interval",
    "save_interval",
    "save_total_limit",
    "save_optimizer",
    "resume",
    "tensorboard",
}
_FREE |= {"workers", "threads", "eval_interval"}
# Files of a checkpoint that say how to feed it; the adapter carries them so that it can be used alone.
_PROCESSOR_FILES = (*companions.TOKENIZER, *companions.TEMPLATE, *companions.GENERATION)


class WholeCallback(TrainerCallback):
    """Marks a checkpoint as whole once everything of it is on disk, and only then drops older ones."""

    def __init__(self, meter: Meter, limit: int, data: str) -> None:
        """`limit` checkpoints are kept; `data` identifies the training samples (see `fingerprint`)."""
        self._meter = meter
        self._limit = limit
        self._data = data

    def on_save(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        _check_finite(model)
        if distributed.is_initialized():
            distributed.barrier()  # every process has written its random state
        if state.is_world_process_zero:
            output = Path(args.output_dir)
            folder = output / f"checkpoint-{state.global_step}"
            mark = {
                "step": state.global_step,
                "seconds": self._meter.seconds,
                "data": self._data,
                "processes": args.world_size,
                "bytes": {
                    path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()
                },
            }
            write_json(folder / _WHOLE, mark)
            for old in _whole(output)[: -self._limit]:
                shutil.rmtree(old, ignore_errors=True)


def _check_finite(model: Any) -> None:
    """A checkpoint of a model that is lost must not become the one to go on from."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not all(bool(torch.isfinite(parameter).all()) for parameter in learning):
        raise SightlineError(DIVERGED)


def fingerprint(samples: Sequence[Sample]) -> str:
    """Identifies the samples and their order, by texts, lengths and the names of their media."""
    digest = hashlib.sha256()
    for sample in samples:
        texts = "\0".join(message.text for message in sample.conversation.messages)
        media = "\0".join(str(medium.source) for medium in media_of(sample.conversation))
        digest.update(f"{sample.tokens.total}\0{texts}\0{media}\1".encode(errors="surrogatepass"))
    return digest.hexdigest()


def check_mark(checkpoint: Path, data: str, processes: int) -> None:
    """Raises SightlineError where a run would go on with other samples or processes than it began with."""
    mark = _mark_of(checkpoint)
    before = mark.get("processes", processes)
    if before != processes:
        raise SightlineError(
            f"{checkpoint.parent.parent} was trained by {before} processes, now there are {processes}; start "
            f"{before}, or choose another output folder to start a new run"
        )
    if mark.get("data", data) != data:
        raise SightlineError(
            f"the training rows are not those that {checkpoint.parent.parent} began with; bring them back, or "
            "choose another output folder to start a new run"
        )


def _whole(checkpoints: Path) -> list[Path]:
    """Checkpoints that were written to their end, oldest first."""
    folders = [mark.parent for mark in checkpoints.glob(f"checkpoint-*/{_WHOLE}")]
    return sorted(folders, key=lambda folder: int(folder.name.split("-")[1]))


def last_whole(output: Path) -> Path | None:
    """The newest checkpoint of a run that was written to its end and has been left as it was."""
    for folder in reversed(_whole(output / "checkpoints")):
        cut = _cut_file(folder)
        if cut is None:
            return folder
        note(f"{folder / cut} is damaged; leaving this checkpoint out")
    return None


def _cut_file(folder: Path) -> str | None:
    """A file of the checkpoint that is not as long as when it was written."""
    for name, size in _mark_of(folder).get("bytes", {}).items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            return str(name)
    return None


def seconds_of(checkpoint: Path) -> float:
    """Training time, in seconds, that a checkpoint stands for."""
    return float(_mark_of(checkpoint)["seconds"])


def _mark_of(checkpoint: Path) -> dict[str, Any]:
    mark: dict[str, Any] = json.loads((checkpoint / _WHOLE).read_text(encoding="utf-8"))
    return mark


@contextlib.contextmanager
def claim(output: Path) -> Iterator[None]:
    """Keep a second run out of the folder while this one works in it. What is no folder is left to `open_run`.

    Raises:
        SightlineError: another run is at work there.
    """
    with contextlib.suppress(OSError):
        output.mkdir(parents=True, exist_ok=True)
    if not output.is_dir():
        yield
        return
    with only_user(
        output, f"another run is writing to {output}; wait for it or choose another output folder"
    ):
        yield


def open_run(config: TrainConfig) -> Path | None:
    """Prepare the output folder.

    Returns:
        The checkpoint to go on from, or None to start at the beginning.

    Raises:
        UsageError: the folder holds another run, or something that is not a run.
    """
    output = config.output
    if output.exists() and not output.is_dir():
        raise UsageError(f"output: {output} is a file; choose a folder")
    recorded = output / CONFIG
    if recorded.exists() and _has_begun(output):
        if config.resume == "never":
            raise UsageError(
                f"output: {output} holds a run already; remove it, choose another folder, or resume: auto"
            )
        _check_same(load_config(recorded), config, output)
        _drop_halves(output)
        return last_whole(output)
    if not recorded.exists() and output.exists() and any(output.iterdir()):
        raise UsageError(f"output: {output} is not empty and not a run; choose another folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SightlineError(f"cannot make the output folder {output}: {error.strerror}") from error
    write_config(config, recorded)
    return None


def _has_begun(output: Path) -> bool:
    """Whether a step was logged or saved: a run stopped by a faulty row or setting leaves nothing to protect."""
    log = output / LOG
    logged = log.exists() and log.stat().st_size > 0
    return logged or (output / RESULT).exists() or last_whole(output) is not None


def _drop_halves(output: Path) -> None:
    """Remove what a killed run was writing."""
    whole = set(_whole(output / "checkpoints"))
    for folder in [*(output / "checkpoints").glob("checkpoint-*"), *output.glob(f"{_FINAL}*")]:
        if folder not in whole:
            shutil.rmtree(folder, ignore_errors=True)


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
    with tempfile.TemporaryDirectory(prefix=_FINAL, dir=output) as name:
        folder = Path(name)
        model.save_pretrained(folder, **({"save_embedding_layers": False} if config.tuner == "lora" else {}))
        for file in _PROCESSOR_FILES:
            if (processor.folder / file).exists():
                shutil.copyfile(processor.folder / file, folder / file)
        record_limits(processor.vision, processor.folder, folder)
        for path in sorted(folder.iterdir()):
            with path.open("rb") as file_to_sync:
                os.fsync(file_to_sync.fileno())
            make_ordinary(path)
            path.replace(output / path.name)
