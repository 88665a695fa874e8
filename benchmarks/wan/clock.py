"""Seconds of calls on any device, and of the parts of a Wan transformer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from sightline.hardware.accelerator import Accelerator


class Clock:
    """Wall time with the device's queue empty at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.synchronize = Accelerator(device.type, device.index).synchronize

    def seconds(self, call: Callable[[], Any]) -> float:
        self.synchronize()
        begun = time.perf_counter()
        call()
        self.synchronize()
        return time.perf_counter() - begun

    def turns(self, calls: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
        """So many seconds of each call, which take turns; every one is called once before."""
        for call in calls:
            call()
        found: list[list[float]] = [[] for _ in calls]
        for _ in range(rounds):
            for place, call in enumerate(calls):
                found[place].append(self.seconds(call))
        return found

    @contextmanager
    def parts(self, model: Any) -> Iterator[dict[str, float]]:
        """Seconds of the matrix products of a transformer that computes by our operators, while the `with` lasts.

        By the parts of `sightline.video.operations`. The device's queue is emptied around each, so that all together
        takes a little longer.
        """
        spent: dict[str, float] = {}
        undo: list[Callable[[], Any]] = []
        for name, module in model.named_modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv3d)):
                undo += self._watch(module, _part(name), spent)
        for block in model.blocks:
            for attention, part in ((block.attn1, "self_attention"), (block.attn2, "cross_attention")):
                processor, attend = attention.processor, attention.processor.attend
                processor.attend = self._timed(attend, part, spent)
                undo.append(lambda processor=processor, attend=attend: setattr(processor, "attend", attend))
        try:
            yield spent
        finally:
            for each in undo:
                each()

    def _watch(self, module: Any, part: str, spent: dict[str, float]) -> list[Callable[[], Any]]:
        begun = 0.0

        def before(*_: Any) -> None:
            nonlocal begun
            self.synchronize()
            begun = time.perf_counter()

        def after(*_: Any) -> None:
            self.synchronize()
            spent[part] = spent.get(part, 0.0) + time.perf_counter() - begun

        return [
            module.register_forward_pre_hook(before).remove,
            module.register_forward_hook(after).remove,
        ]

    def _timed(self, call: Callable[..., Any], part: str, spent: dict[str, float]) -> Callable[..., Any]:
        def timed(*given: Any) -> Any:
            self.synchronize()
            begun = time.perf_counter()
            made = call(*given)
            self.synchronize()
            spent[part] = spent.get(part, 0.0) + time.perf_counter() - begun
            return made

        return timed


def _part(name: str) -> str:
    """Of a layer by its name in the model."""
    for mark, part in ((".attn1.", "self_projections"), (".attn2.", "cross_projections"), (".ffn.", "ffn")):
        if mark in name:
            return part
    return "head" if name == "proj_out" else "embeddings"
