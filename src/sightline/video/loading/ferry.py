"""A transformer whose blocks are on the device two at a time: one that runs, and the next, which is on its way.

diffusers' `enable_group_offload` does the same, but puts forwards back after the first step of a run with a stream, and
so takes a step cache away that was attached after it; and it brings the weights of blocks that a step cache leaves out.
Here a block is fetched when it is really called. The device holds two blocks' memory, given once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sightline.errors import SightlineError
from sightline.video.loading.visit import like, slots

if TYPE_CHECKING:
    import torch


class Ferry:
    """Put a transformer on a device, its blocks but for two outside.

    Args:
        model: diffusers' Wan transformer, on the CPU, or one of its kind: all `blocks` alike, called in their order.
        device: where it computes.

    Raises:
        SightlineError: its blocks are not alike.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        blocks = list(model.blocks)
        self._homes = [slots(block) for block in blocks]
        _check_alike(self._homes)
        self._streams = _Streams(device)
        for homes in self._homes:
            for place, name, value in homes:
                place[name] = like(value, self._streams.pinned(value.data))
        self._homes = [slots(block) for block in blocks]
        for name, child in model.named_children():
            if name != "blocks":
                child.to(device)
        for table in (model._parameters, model._buffers):
            for name, value in table.items():
                if value is not None:
                    table[name] = like(value, value.data.to(device))
        self._berths = [_Berth(self._homes[0], device) for _ in range(min(2, len(blocks)))]
        for number, block in enumerate(blocks):
            block.forward = self._ferried(number, block.forward)

    def _ferried(self, number: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def ferried(*args: Any, **kwargs: Any) -> Any:
            berth = self._fetched(number, busy=None)
            self._streams.wait_for_copy(berth)
            berth.install(self._homes[number])
            try:
                # The next one travels while this one computes.
                self._fetched((number + 1) % len(self._homes), busy=berth)
                return forward(*args, **kwargs)
            finally:
                berth.put_back(self._homes[number])
                self._streams.mark_free(berth)

        return ferried

    def _fetched(self, number: int, busy: _Berth | None) -> _Berth:
        """The berth that holds a block, or will when its copy is done."""
        for berth in self._berths:
            if berth.holds == number:
                return berth
        free = [berth for berth in self._berths if berth is not busy]
        if not free:  # one block in all
            return self._berths[0]
        berth = free[0]
        berth.holds = None
        self._streams.copy(berth, [value.data for _, _, value in self._homes[number]])
        berth.holds = number
        return berth


class _Berth:
    """Memory on the device for one block."""

    def __init__(self, homes: list[Any], device: torch.device) -> None:
        import torch

        self.tensors = [torch.empty_like(value.data, device=device) for _, _, value in homes]
        self.holds: int | None = None
        self.copied: Any = None
        self.free: Any = None

    def install(self, homes: list[Any]) -> None:
        for (place, name, value), tensor in zip(homes, self.tensors, strict=True):
            # A new parameter each time: a cast of the weights replaces its data.
            place[name] = like(value, tensor)

    def put_back(self, homes: list[Any]) -> None:
        for place, name, value in homes:
            place[name] = value


class _Streams:
    """The order of copies and computing: on a device with streams side by side, on the CPU one after the other."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self.device = device
        self.module: Any = None if device.type in ("cpu", "meta") else getattr(torch, device.type)
        self.side = None if self.module is None else self.module.Stream(device=device)

    def pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same in memory that a device copies from without waiting, as far as the system gives any."""
        if self.module is None:
            return tensor
        try:
            return tensor.pin_memory()
        except RuntimeError:
            return tensor

    def copy(self, berth: _Berth, sources: list[torch.Tensor]) -> None:
        if self.side is None:
            for target, source in zip(berth.tensors, sources, strict=True):
                target.copy_(source)
            return
        if berth.free is None:  # its memory may have been another's, whose work still runs
            self.mark_free(berth)
        self.side.wait_event(berth.free)
        with self.module.stream(self.side):
            for target, source in zip(berth.tensors, sources, strict=True):
                target.copy_(source, non_blocking=True)
            berth.copied = self.side.record_event()

    def wait_for_copy(self, berth: _Berth) -> None:
        if berth.copied is not None:
            self.module.current_stream(self.device).wait_event(berth.copied)

    def mark_free(self, berth: _Berth) -> None:
        if self.side is not None:
            berth.free = self.module.current_stream(self.device).record_event()


def _check_alike(homes: list[Any]) -> None:
    forms = [[(name, value.shape, value.dtype) for _, name, value in block] for block in homes]
    for number, form in enumerate(forms):
        if form != forms[0]:
            raise SightlineError(
                f"block {number} of the transformer is not like block 0, so that it cannot take its place on the "
                "device; use offload model instead of group"
            )
