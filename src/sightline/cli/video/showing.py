"""What is shown of a generation: steps as they are done, and a line when it is over. One rank speaks for all."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from sightline.errors import SightlineError
from sightline.progress import Progress, duration, set_quiet, size
from sightline.video.parallel.launch import leads

if TYPE_CHECKING:
    from sightline.video.denoise import Step
    from sightline.video.writing.record import Record

_PATIENCE = 3.0  # seconds; torchrun ends the others within one of them when rank 0 has left


class Steps(Progress):
    """A bar of denoising steps, with the seconds that one takes."""

    _pace = ""
    _begun: float | None = None

    def take(self, step: Step) -> None:
        """Say that a step is done."""
        now = time.monotonic()
        if self._begun is None:
            self._begun = now  # what the first step compiles, measures or loads does not come again
        else:
            self._pace = f", {(now - self._begun) / step.index:.3g} s/step"
        self.update(step.index + 1, step.steps)

    def _detail(self) -> str:
        return super()._detail() + self._pace


class Waiting(Progress):
    """Work of which nobody knows how far it is."""

    def _detail(self) -> str:
        return "under way"

    def _amount(self, count: int) -> str:
        return "done"


class Generation:
    """Shows one generation: its steps, and what comes behind them."""

    def __init__(self, label: str, steps: int) -> None:
        self._bar: Progress = Steps(f"{label}, steps", steps)
        self._label = label

    def __enter__(self) -> Generation:
        self._bar.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.__exit__(kind, error, traceback)

    def take(self, step: Step) -> None:
        """Say that a step is done; behind the last one the frames are decoded."""
        if not isinstance(self._bar, Steps):
            return
        self._bar.take(step)
        if step.index + 1 == step.steps:
            self._bar.__exit__(None, None, None)
            self._bar = Waiting(f"{self._label}, decoding and writing")
            self._bar.__enter__()


@dataclass
class Voice:
    """Who speaks. `settled` once the ranks are joined and watched: from there on the watch says who tells an error."""

    settled: bool = False


@contextmanager
def one_voice() -> Iterator[Voice]:
    """Let rank 0 speak for all that torchrun started.

    An error that every rank makes before they are joined is said once: the others hold theirs back until torchrun ends
    them, and say it only if rank 0 goes on.
    """
    voice = Voice()
    if leads():
        yield voice
        return
    set_quiet()
    try:
        yield voice
    except SightlineError:
        if not voice.settled:
            hold_back()
        raise


def hold_back() -> None:
    """Wait with an error, on other ranks than the first, until torchrun has ended them for the same error there."""
    if not leads():
        time.sleep(_PATIENCE)


def summary(record: Record, path: Path) -> str:
    """One line: the file, what is in it, and where the time went."""
    request = record.request
    parts = [f"{part} {_short(seconds)}" for part, seconds in record.seconds.items()]
    if record.seconds_per_step is not None:
        pace = f"{record.seconds_per_step:.3g} s/step"
        if share := record.operations.get("denoise", {}).get("share"):
            pace += f", {share:.0%} of the machine's rate"
        parts = [f"{part} ({pace})" if part.startswith("denoise ") else part for part in parts]
    return (
        f"{path}: {request.width}x{request.height}, {request.frames} frame{'s' if request.frames > 1 else ''} at "
        f"{request.fps}/s, seed {request.seed}, {size(path.stat().st_size)}, "
        f"in {_short(sum(record.seconds.values()))}: {', '.join(parts)}"
    )


def _short(seconds: float) -> str:
    return duration(seconds) if seconds >= 0.05 else f"{1000 * seconds:.0f} ms"
