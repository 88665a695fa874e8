"""What a run does with its time: tokens, samples, waiting for data, progress."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import distributed


@dataclass
class _Counts:
    samples: int = 0
    tokens: int = 0
    vision_tokens: int = 0
    waited: float = 0.0
    started: float = field(default_factory=time.perf_counter)


class Meter:
    """Counts batches as they are fetched. `earlier` are the seconds of the runs that this one resumes."""

    def __init__(self) -> None:
        self.earlier = 0.0
        self.samples = 0
        self._begun: float | None = None
        self._window = _Counts()

    def begin(self) -> None:
        """The first step is about to start."""
        self._begun = time.perf_counter()
        self._window = _Counts()

    @property
    def seconds(self) -> float:
        """Training time so far, resumed runs included."""
        return self.earlier + (time.perf_counter() - self._begun if self._begun is not None else 0.0)

    def common_seconds(self) -> float:
        """`seconds` of the first process, so that all processes stop and lower their rates at the same step."""
        seconds = [self.seconds]
        if distributed.is_initialized():
            distributed.broadcast_object_list(seconds, src=0)
        return seconds[0]

    def fetched(self, batches: list[dict[str, Any]], waited: float) -> None:
        """Count the batches of one optimizer step, which took `waited` seconds to arrive."""
        window = self._window
        window.waited += waited
        for batch in batches:
            kinds = batch["kinds"]
            window.samples += len(kinds)
            window.tokens += int((kinds >= 0).sum())
            window.vision_tokens += int((kinds > 0).sum())
            self.samples += len(kinds)

    def rates(self) -> dict[str, float]:
        """Rates since the last call: tokens/s, vision tokens/s, samples/s, share of time waiting for data."""
        window, self._window = self._window, _Counts()
        elapsed = max(self._window.started - window.started, 1e-9)
        return {
            "tokens_per_second": round(window.tokens / elapsed, 1),
            "vision_tokens_per_second": round(window.vision_tokens / elapsed, 1),
            "samples_per_second": round(window.samples / elapsed, 3),
            "data_wait": round(min(1.0, window.waited / elapsed), 4),
        }

    def progress(self, total_steps: int, max_seconds: float | None) -> Callable[[int], float]:
        """The share of the run that is done after a number of steps, by steps or by time, whichever is further."""

        def share(step: int) -> float:
            by_steps = step / max(1, total_steps)
            return max(by_steps, self.common_seconds() / max_seconds) if max_seconds else by_steps

        return share
