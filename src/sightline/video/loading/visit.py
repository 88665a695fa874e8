"""A part that is on the device only while it runs: its weights are copied there, and dropped there afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sightline.hardware.out_of_memory import explained

if TYPE_CHECKING:
    import torch
    from torch import nn

_ADVICE = "use offload group, which has the transformer there two blocks at a time, or a free device"

Slot = tuple[dict[str, Any], str, Any]


@contextmanager
def visiting(module: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """Have a module's weights and tables on a device while the `with` lasts, and where they were after it.

    What stays behind is the module as it was: a change to its weights made meanwhile is lost.

    Raises:
        SightlineError: the device's memory runs out.
    """
    homes = slots(module)
    try:
        moved: dict[int, Any] = {}
        with explained(f"a {type(module).__name__} does not fit on {device}", _ADVICE):
            for place, name, value in homes:
                if id(value) not in moved:
                    moved[id(value)] = like(value, value.data.to(device))
                place[name] = moved[id(value)]
        yield module
    finally:
        for place, name, value in homes:
            place[name] = value


def slots(module: nn.Module) -> list[Slot]:
    """Every place of a module that holds a parameter or buffer: the dictionary, the name in it, and what it holds."""
    return [
        (place, name, value)
        for inside in module.modules()
        for place in (inside._parameters, inside._buffers)
        for name, value in place.items()
        if value is not None
    ]


def like(value: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """The data as what it stands for is: a parameter or a bare tensor."""
    from torch import nn

    return nn.Parameter(data, requires_grad=False) if isinstance(value, nn.Parameter) else data
