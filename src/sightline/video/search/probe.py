"""One exact generation with instruments: what each step's values would be worth to the steps after it.

Of outputs and of what blocks compute only a fixed sample is kept, of the last steps; see `products`. The hooks are
there for the length of the generation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from sightline.video.search.products import Products, Sampler
from sightline.video.search.record import LONGEST, WINDOW, ProbeRecord

if TYPE_CHECKING:
    from torch import Tensor

    from sightline.video.denoise import Step

OUTPUT_SAMPLE = 2**16  # values of an output that are kept: 64 MB in all, with both branches
BLOCK_SAMPLE = 2**14  # of a block's hidden states: 55 MB for 30 blocks


class Probe:
    """Instruments of one generation.

    Args:
        blocks: the transformer's.
        steps, branches: of the generation.
        synchronize: waits until the device is done, so that seconds mean something.
    """

    def __init__(
        self, blocks: int, steps: int, branches: int, synchronize: Callable[[], None] = lambda: None
    ) -> None:
        self.steps, self.branches, self.count = steps, branches, blocks
        self.synchronize = synchronize
        self.outputs = Products(steps, branches, WINDOW)
        self.moved = np.full((branches, LONGEST, steps, blocks, blocks), np.nan)
        self.attended = np.full((branches, LONGEST, steps, blocks), np.nan)
        self.sigmas = np.zeros(steps + 1)
        self.call_seconds: list[list[float]] = [[] for _ in range(branches)]
        self.block_seconds, self.attention_seconds = np.zeros(blocks), np.zeros(blocks)
        self._output, self._inside = Sampler(OUTPUT_SAMPLE), Sampler(BLOCK_SAMPLE)
        self._past: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        self._call = 0
        self._rest = 0.0
        self._idle_since: float | None = None
        self._final: Tensor | None = None

    @contextmanager
    def installed(self, transformer: Any) -> Iterator[None]:
        """Hooks on a transformer while the `with` lasts."""
        hooks = [
            transformer.register_forward_pre_hook(lambda *_: self._begin_call()),
            transformer.register_forward_hook(lambda *_: self._end_call()),
        ]
        for number, block in enumerate(transformer.blocks):
            hooks.append(block.register_forward_pre_hook(self._block_begins(number)))
            hooks.append(block.register_forward_hook(self._block_ends(number)))
            hooks.append(block.attn1.register_forward_pre_hook(lambda *_: self._attention_begins()))
            hooks.append(block.attn1.register_forward_hook(self._attention_ends(number)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def on_step(self, step: Step) -> None:
        """For `VideoPipeline.denoise`."""
        self._leave_rest()
        self.outputs.add(step.index, [self._output(value) for value in step.velocities.values()])
        self.sigmas[step.index] = step.sigma
        self._final = step.latents
        self._idle_since = self._now()

    def record(self) -> ProbeRecord:
        """After the generation."""
        assert self._final is not None
        # The first call of a model warms up.
        calls = np.array([np.median(each) for each in self.call_seconds])
        total = max(sum(map(sum, self.call_seconds)), 1e-12)
        return ProbeRecord(
            outputs=self.outputs.table,
            blocks=self.moved,
            attention=self.attended,
            sigmas=self.sigmas,
            final=np.array([float(self._final.double().square().mean())]),
            call_seconds=calls,
            rest_seconds=np.array([self._rest]),
            block_seconds=self.block_seconds / total,
            attention_seconds=self.attention_seconds / total,
        )

    def _now(self) -> float:
        self.synchronize()
        return time.perf_counter()

    def _leave_rest(self) -> None:
        """What is outside of calls and instruments ends here."""
        if self._idle_since is not None:
            self._rest += self._now() - self._idle_since
            self._idle_since = None

    def _begin_call(self) -> None:
        self._leave_rest()
        self._changes: list[np.ndarray] = []
        self._attentions: list[np.ndarray] = []
        self._instruments = 0.0
        self._call_begun = self._now()

    def _end_call(self) -> None:
        step, branch = divmod(self._call, self.branches)
        self.call_seconds[branch].append(self._now() - self._call_begun - self._instruments)
        changes, attentions = np.stack(self._changes), np.stack(self._attentions)
        self._past[branch, step] = (changes, attentions)
        self._past.pop((branch, step - LONGEST - 1), None)
        for gap in range(1, min(LONGEST, step) + 1):
            before, attended = self._past[branch, step - gap]
            difference = (changes - before).astype(np.float64)
            self.moved[branch, gap - 1, step] = difference @ difference.T / difference.shape[1]
            self.attended[branch, gap - 1, step] = np.square(attentions - attended, dtype=np.float64).mean(1)
        self._call += 1
        self._idle_since = self._now()

    def _block_begins(self, number: int) -> Callable[..., None]:
        def hook(module: Any, given: tuple[Any, ...]) -> None:
            begun = self._now()
            if number == 0:
                self._entering = self._inside(given[0])
            self._block_begun = self._now()
            self._instruments += self._block_begun - begun
            self._inside_block = 0.0

        return hook

    def _block_ends(self, number: int) -> Callable[..., None]:
        def hook(module: Any, given: Any, output: Any) -> None:
            ended = self._now()
            self.block_seconds[number] += ended - self._block_begun - self._inside_block
            leaving = self._inside(output)
            self._changes.append(leaving - self._entering)
            self._entering = leaving
            self._instruments += self._now() - ended

        return hook

    def _attention_begins(self) -> None:
        self._attention_begun = self._now()

    def _attention_ends(self, number: int) -> Callable[..., None]:
        def hook(module: Any, given: Any, output: Any) -> None:
            ended = self._now()
            self.attention_seconds[number] += ended - self._attention_begun
            self._attentions.append(self._inside(output))
            instruments = self._now() - ended
            self._inside_block += instruments
            self._instruments += instruments

        return hook
