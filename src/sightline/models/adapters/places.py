"""The names and shapes of a model's tensors, to find an adapter's places in it after its layers are rewritten."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sightline.checkpoints.names import canonical
from sightline.models.quantization.linear import QuantizedLinear


class Places:
    """What `checkpoints.adapter.open_adapter` asks of a base, of a model in memory.

    A quantized linear layer counts as the weight and bias that it stands for.
    """

    def __init__(self, path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
        self.path = path
        self._shapes = shapes

    @classmethod
    def of(cls, module: Any, path: Path) -> Places:
        """Of a transformers model with head, before anything takes its layers over."""
        shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
        for name, layer in module.named_modules():
            if isinstance(layer, QuantizedLinear):
                shapes[f"{name}.weight"] = (layer.out_features, layer.in_features)
                if layer.bias is not None:
                    shapes[f"{name}.bias"] = (layer.out_features,)
        return cls(path, shapes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def vision(self) -> dict[str, str]:
        """Our name of each tensor of the vision tower (`visual.blocks.0...`) -> its name here."""
        ours = {canonical(name): name for name in self._shapes}
        return {name: own for name, own in ours.items() if name.startswith("visual.")}
