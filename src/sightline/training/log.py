"""The log of a run: one JSON line an interval, the same on the console for people and in TensorBoard for plots."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sightline.errors import SightlineError
from sightline.files import replacing
from sightline.hardware.accelerator import Accelerator
from sightline.progress import note
from sightline.training.checkpoint import DIVERGED, LOG
from sightline.training.meter import Meter

GIB = 1024**3


class LogCallback(TrainerCallback):
    """Writes `log.jsonl`, the console lines and, where TensorBoard is installed, its event files."""

    def __init__(
        self,
        output: Path,
        meter: Meter,
        accelerator: Accelerator,
        max_seconds: float | None,
        tensorboard: bool,
    ) -> None:
        self._path = output / LOG
        self._meter = meter
        self._accelerator = accelerator
        self._max_seconds = max_seconds
        self._tensorboard = output / "tensorboard" if tensorboard else None
        self._board: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A resumed state brings the intervals that it was saved with.
        state.compute_steps(args, state.max_steps)
        if state.is_world_process_zero:
            truncate_log(self._path, state.global_step)
            if self._tensorboard is not None:
                self._board = _board(self._tensorboard, state.global_step)
        self._meter.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._max_seconds is not None and self._meter.common_seconds() >= self._max_seconds:
            control.should_training_stop = True
        # The last steps count too; and a log that ends with the checkpoint goes on as if never interrupted.
        if state.global_step >= state.max_steps or control.should_training_stop or control.should_save:
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "train_runtime" in logs:
            return
        if not math.isfinite(logs.get("loss", 0.0)):
            raise SightlineError(f"step {state.global_step}: {DIVERGED}")
        if not state.is_world_process_zero:
            return
        entry: dict[str, Any] = {"step": state.global_step, "epoch": round(state.epoch or 0, 4)}
        if "eval_loss" in logs:
            entry["eval_loss"] = logs["eval_loss"]
            note(f"step {entry['step']}  validation loss {entry['eval_loss']:.4f}")
        else:
            entry |= {name: logs[name] for name in ("loss", "grad_norm", "learning_rate") if name in logs}
            entry |= self._meter.rates()
            entry["memory_bytes"] = self._accelerator.peak_memory()
            entry["seconds"] = round(self._meter.seconds, 2)
            entry["seconds_left"] = self._seconds_left(state)
            note(_line(entry, state.max_steps))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if self._board is not None:
            for name, value in entry.items():
                if isinstance(value, (int, float)) and name not in ("step", "epoch"):
                    self._board.add_scalar(name, value, state.global_step)

    def close(self) -> None:
        """Bring the TensorBoard files to disk; nothing may be logged after."""
        if self._board is not None:
            self._board.close()

    def _seconds_left(self, state: Any) -> float:
        per_step = self._meter.seconds / max(1, state.global_step)
        left = per_step * (state.max_steps - state.global_step)
        if self._max_seconds is not None:
            left = min(left, self._max_seconds - self._meter.seconds)
        return round(max(0.0, left), 1)


def truncate_log(path: Path, step: int) -> None:
    """Drop the lines after `step`: a resumed run computes them again, and each step must stand once."""
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
    with replacing(path) as file:
        file.write("".join(line + "\n" for line in kept if step))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a log; a torn last line is left out."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            continue
    return entries


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _line(entry: dict[str, Any], max_steps: int) -> str:
    return (
        f"step {entry['step']}/{max_steps}  loss {entry.get('loss', float('nan')):.4f}  "
        f"lr {entry.get('learning_rate', 0):.2e}  {entry['tokens_per_second']:.0f} tok/s "
        f"({entry['vision_tokens_per_second']:.0f} vision)  {entry['samples_per_second']:.2f} samples/s  "
        f"data wait {entry['data_wait']:.0%}  memory {entry['memory_bytes'] / GIB:.2f} GiB  "
        f"left {_clock(entry['seconds_left'])}"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        note("TensorBoard files are not written: install them with pip install 'sightline[tensorboard]'")
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)
