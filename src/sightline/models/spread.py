"""A model larger than one card, spread over several by accelerate: each decoder layer whole on one device.

accelerate's hooks carry a layer's inputs to its device. Layers may also wait in host memory or on a disk and
come to a card only while they compute, which is slow but runs.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sightline.errors import SightlineError, UsageError, first_line
from sightline.hardware.accelerator import Accelerator, available

DeviceMap = dict[str, "int | str | torch.device"]

_OFFLOADED = ("cpu", "disk")
# A model that leaves less than this share of a card free for the cache is better spread.
_ONE_CARD = 0.7


@dataclass(frozen=True)
class Placement:
    """Where the parts of a spread model compute.

    Attributes:
        devices: by the names of modules; a module without a name of its own is where its parent is.
        offloaded: some weights are not on the device that computes with them: between forwards the module's
            parameters are empty, and nobody but its own forward may use them.
    """

    devices: dict[str, torch.device]
    offloaded: bool

    def device_of(self, name: str) -> torch.device:
        """Where the module of this full name computes; for one that is itself spread, its first part."""
        parts = name.split(".")
        for end in range(len(parts), -1, -1):
            if (found := self.devices.get(".".join(parts[:end]))) is not None:
                return found
        return next(device for part, device in self.devices.items() if part.startswith(f"{name}."))


def plan(
    module: Any,
    device_map: str | Mapping[str, Any],
    max_memory: Mapping[Any, Any] | None,
    accelerator: Accelerator,
) -> DeviceMap:
    """Which device each part of a model in host memory goes to; {"": device} where one takes it all.

    "auto" keeps a model whole that fits into one card with room for a cache, and spreads a larger one evenly,
    by the memory that is free. Only where `max_memory` gives "cpu" or "disk" room may parts stay off the cards.

    Raises:
        UsageError: the map is none, splits what must stay whole, or the memory is not understood.
        SightlineError: the model is larger than all cards together.
    """
    whole = [*(module._no_split_modules or ()), type(module.model.visual).__name__]
    if not isinstance(device_map, str):
        return _checked(module, dict(device_map), whole)
    if device_map != "auto":
        raise UsageError(f"device_map {device_map!r} is not 'auto' or a dict of modules and devices")
    if max_memory is None:
        return _over_cards(module, whole, accelerator)
    return _infer(module, whole, dict(max_memory))


def spread(module: Any, device_map: DeviceMap, offload_folder: str | Path | None) -> Placement:
    """Move the parts of a model in host memory to their devices and hook them together.

    Args:
        offload_folder: for parts on "disk". They go into a folder of their own in it, which is removed with
            the model.

    Raises:
        UsageError: parts go to "disk" and there is no folder. SightlineError: accelerate refuses.
    """
    from accelerate import dispatch_model

    main = next((device for device in device_map.values() if device not in _OFFLOADED), "cpu")
    folder = None
    if "disk" in device_map.values():
        if offload_folder is None:
            raise UsageError("device_map leaves parts of the model on disk; say in which offload_folder")
        Path(offload_folder).mkdir(parents=True, exist_ok=True)
        # A fresh one: accelerate takes weights that it finds there for this model's.
        folder = tempfile.mkdtemp(prefix="sightline-", dir=offload_folder)
        weakref.finalize(module, shutil.rmtree, folder, ignore_errors=True)
    try:
        with _quiet():
            dispatch_model(
                module,
                device_map,
                main_device=main,
                offload_dir=folder,
                skip_keys=module._skip_keys_device_placement,
                # The tower uses the weights of some of its parts without calling them.
                preload_module_classes=[type(module.model.visual).__name__],
                force_hooks=True,
            )
    except (ValueError, RuntimeError, OSError) as error:
        raise SightlineError(f"the model cannot be spread by this device_map: {first_line(error)}") from error
    devices = {name: _device(main if device in _OFFLOADED else device) for name, device in device_map.items()}
    away = ("disk",) if main == "cpu" else _OFFLOADED
    return Placement(devices, any(device in away for device in device_map.values()))


def _over_cards(module: Any, whole: list[str], accelerator: Accelerator) -> DeviceMap:
    if accelerator.kind == "cpu":
        return {"": "cpu"}
    cards = [card for card in available() if card.kind == accelerator.kind]
    free = {card.index: card.memory().free for card in cards}
    size = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    roomiest = max(free, key=lambda index: free[index])
    if size <= _ONE_CARD * free[roomiest]:
        return {"": f"{accelerator.kind}:{roomiest}"}
    found = _infer(module, whole, dict(free))
    if "disk" in found.values():
        raise SightlineError(
            f"the model takes {size / 2**30:.1f} GiB, but the {len(free)} visible cards have "
            f"{sum(free.values()) / 2**30:.1f} GiB free together; free memory, use more cards or a quantized "
            'model, or let parts stay in host memory with max_memory={..., "cpu": "64GiB"}'
        )
    return found


def _infer(module: Any, whole: list[str], memory: dict[Any, Any]) -> DeviceMap:
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    try:
        with _quiet():
            even = get_balanced_memory(module, memory, no_split_module_classes=whole)
            found: DeviceMap = infer_auto_device_map(module, even, no_split_module_classes=whole)
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"max_memory {memory!r} is not understood: {first_line(error)}") from error
    return found


def _checked(module: Any, device_map: DeviceMap, whole: list[str]) -> DeviceMap:
    modules = dict(module.named_modules())
    for name in device_map:
        parents = name.split(".")
        for end in range(1, len(parents)):
            parent = modules.get(".".join(parents[:end]))
            if type(parent).__name__ in whole:
                raise UsageError(
                    f"device_map splits {'.'.join(parents[:end])}, which must stay on one device; "
                    "name it as a whole"
                )
    covered = [f"{name}." if name else "" for name in device_map]
    for name, _ in module.named_parameters():
        if not any(f"{name}.".startswith(prefix) for prefix in covered):
            raise UsageError(f"device_map says nothing of {name}; give every part of the model a device")
    if set(device_map) == {""} and device_map[""] != "disk":
        return device_map
    return _spelled_out(module, device_map)


def _spelled_out(module: Any, device_map: DeviceMap) -> DeviceMap:
    """With names for what "" stands for: accelerate loses parts on disk that have none."""
    found = {name: device for name, device in device_map.items() if name}

    def visit(parent: Any, prefix: str) -> None:
        for name, child in parent.named_children():
            full = prefix + name
            if any(other.startswith(f"{full}.") for other in device_map):
                visit(child, f"{full}.")
            else:
                found.setdefault(full, device_map[""])

    if "" in device_map:
        visit(module, "")
    return found


def _device(name: int | str | torch.device) -> torch.device:
    if not isinstance(name, int):
        return torch.device(name)
    kind = next((card.kind for card in available() if card.index == name), "cuda")
    return torch.device(kind, name)


@contextmanager
def _quiet() -> Iterator[None]:
    """accelerate warns that offloaded weights are offloaded."""
    logger = logging.getLogger("accelerate")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
