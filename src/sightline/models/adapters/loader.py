"""From an adapter folder to what a running model computes with, beside the base and other adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sightline.checkpoints.store import Store
from sightline.data.vision_spec import VisionSpec
from sightline.errors import SightlineError
from sightline.hardware.out_of_memory import explained
from sightline.models.adapters.low_rank import Layer, Layers, Pair, layer_bytes
from sightline.models.adapters.places import Places
from sightline.models.adapters.reading import Reading, read_adapter
from sightline.models.adapters.tower import adapted_tower
from sightline.models.loading import VisionLanguageModel, vision_of

_ADVICE = (
    "unload another one, load it at the start, where the KV cache leaves it room, or lower gpu_memory_utilization "
    "or kv_cache_memory_bytes"
)


@dataclass(frozen=True)
class AdapterInfo:
    """What is told of an adapter.

    Attributes:
        rank: the largest of its low-rank changes; 0 without any.
        targets: names of the linear maps of the language model that change, and "visual" where the tower does.
        bytes: of memory that it takes.
    """

    name: str
    path: Path
    rank: int
    targets: tuple[str, ...]
    bytes: int


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter in memory, which goes when nobody refers to it any more.

    Attributes:
        key: of this load and no other, whatever its name: what caches tell adapters apart by.
        layers: the changes of each decoder layer, in the form of the model's `Text`; None without any.
        tower: in place of the model's vision tower; None where that one serves.
        vision: how pictures are brought to the tower; training may have recorded pixel limits.
    """

    info: AdapterInfo
    key: str
    layers: Layers | None
    tower: Any
    vision: VisionSpec

    @property
    def tower_key(self) -> str | None:
        """What features of pictures depend on beside the pictures: None where they are the base's."""
        return None if self.tower is None else self.key


class AdapterLoader:
    """Loads adapters for one model; one at a time, in any thread, also while the model computes.

    Args:
        places: of the model, from before its layers were rewritten.
        join: brings the changes of a layer into the form of the model's `Text`.
        tower: the model's vision tower, as it computes.
        rewritten: the tower went through `rewrite_tower`.
    """

    def __init__(
        self,
        model: VisionLanguageModel,
        places: Places,
        *,
        join: Callable[[int, Mapping[str, Pair]], Layer],
        tower: Any,
        rewritten: bool,
    ) -> None:
        self._model = model
        self._places = places
        self._join = join
        self._tower = tower
        self._rewritten = rewritten

    def load(
        self, name: str, folder: str | Path, key: str, *, max_rank: int, pixels: Mapping[str, int | None]
    ) -> LoadedAdapter:
        """Check an adapter folder, then bring its tensors to the model's devices.

        Args:
            key: of this load and no other.
            max_rank: a higher rank is refused.
            pixels: max_pixels and min_pixels, where they are set for the whole engine.

        Raises:
            SightlineError: it is no adapter of this model or of a kind that cannot be computed beside others, or
                memory does not suffice.
        """
        reading = read_adapter(folder, self._places, max_rank=max_rank)
        vision = vision_of(self._model.processor, folder, **pixels)
        self._check_memory(name, reading)
        with explained(f"the adapter {name} does not fit into memory beside the engine", _ADVICE):
            layers = self._layers(reading) if reading.linear else None
            tower, size = self._own_tower(reading) if reading.vision else (None, 0)
        size += layer_bytes(layers or ())
        info = AdapterInfo(name, Path(folder), reading.rank, reading.targets, size)
        return LoadedAdapter(info, key, layers, tower, vision)

    def _check_memory(self, name: str, reading: Reading) -> None:
        needed = reading.elements() * self._model.dtype.itemsize
        free = self._model.accelerator.memory().free
        if needed > free:
            raise SightlineError(
                f"the adapter {name} takes {needed / 2**20:,.0f} MiB, but {self._model.accelerator} has "
                f"{free / 2**20:,.0f} MiB free beside the engine; {_ADVICE}"
            )

    def _layers(self, reading: Reading) -> Layers:
        devices = self._model.layer_devices
        named: list[dict[str, Pair]] = [{} for _ in devices]
        for (layer, name), change in reading.linear.items():
            named[layer][name] = reading.pair(change, devices[layer], self._model.dtype)
        with torch.inference_mode():
            return Layers(self._join(layer, pairs) for layer, pairs in enumerate(named))

    def _own_tower(self, reading: Reading) -> tuple[Any, int]:
        model = self._model
        device = model.device
        if model.placement is not None:
            device = model.placement.device_of("model.visual")
        return adapted_tower(
            self._tower,
            reading,
            Store(model.folder),
            device=device,
            dtype=model.dtype,
            rewritten=self._rewritten,
            # Weights that wait in host memory or on a disk come to the base's own tower only.
            share=model.placement is None or not model.placement.offloaded,
        )
