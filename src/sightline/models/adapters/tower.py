"""A vision tower of an adapter's own: its changed parts beside the base's others, which both share."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from sightline.checkpoints.names import canonical
from sightline.checkpoints.store import Store
from sightline.models.adapters.reading import Reading
from sightline.models.attention import batch_segments
from sightline.models.fast.linear import convert_linear
from sightline.models.fast.vision import GatedVisionMlp, VisionMlp, rewrite_tower
from sightline.models.quantization.weights import dequantize
from sightline.models.rewrites import LinearPatchEmbed


def adapted_tower(
    base: Any,
    reading: Reading,
    weights: Store,
    *,
    device: torch.device,
    dtype: torch.dtype,
    rewritten: bool,
    share: bool = True,
) -> tuple[Any, int]:
    """The tower with an adapter's changes in it, summed in float32 and rounded once to `dtype`.

    Args:
        base: the model's own tower, as it computes. It stays as it is.
        weights: the base's checkpoint.
        rewritten: `base` went through `rewrite_tower`, and this shall too.
        share: use the base's modules where nothing changes; not possible where their weights come and go.

    Returns:
        The tower, and the bytes that it has of its own.

    Raises:
        SightlineError: a change holds nan.
    """
    tower = _empty(base)
    if share:
        _share(tower, base, reading.vision.keys(), "visual.")
    if not isinstance(tower.patch_embed, LinearPatchEmbed):
        tower.patch_embed = LinearPatchEmbed(tower.patch_embed)
    size = _fill(tower, reading, weights, device, dtype)
    batch_segments(tower)
    if rewritten:
        rewrite_tower(tower, convert_linear)
    return tower.to(device).eval(), size


def _empty(base: Any) -> Any:
    """A tower of the same kind whose parameters have no memory; buffers, which no file holds, are real."""
    from accelerate import init_empty_weights

    config = copy.deepcopy(base.config)
    config._attn_implementation = "sdpa"
    with init_empty_weights(include_buffers=False):
        return type(base)(config)


def _share(tower: nn.Module, base: nn.Module, changed: Collection[str], prefix: str) -> None:
    """Put the base's modules in place of those without a change, however deep they lie."""
    for name, child in list(tower.named_children()):
        full, twin = f"{prefix}{name}.", getattr(base, name)
        if not any(target.startswith(full) for target in changed):
            setattr(tower, name, twin)
        elif not isinstance(
            twin, (VisionMlp, GatedVisionMlp)
        ):  # their linear maps have other names, or are joined
            _share(child, twin, changed, full)


def _fill(tower: Any, reading: Reading, weights: Store, device: torch.device, dtype: torch.dtype) -> int:
    """Give every parameter that has no memory its value; the bytes of all these."""
    stored = {canonical(name): name for name in weights}
    size = 0
    for name, parameter in list(tower.named_parameters()):
        if not parameter.is_meta:
            continue
        ours = f"visual.{name}"
        change = reading.vision.get(ours)
        if change is not None and change.whole is not None and change.a is None:
            value = reading.adapter.store.get(change.whole).reshape(parameter.shape)
        else:
            value = _plain(weights, stored[ours])
            if change is not None:
                value = reading.adapter.changed(value.float(), change.target)
        value = value.to(dtype)
        reading.check_finite(ours, value)
        owner, _, leaf = name.rpartition(".")
        setattr(
            tower.get_submodule(owner), leaf, nn.Parameter(value.contiguous().to(device), requires_grad=False)
        )
        size += value.nbytes
    return size


def _plain(weights: Store, name: str) -> torch.Tensor:
    """A tensor of the checkpoint; an 8 bit one (the only kind that towers have) as numbers again."""
    value = weights.get(name)
    if value.dtype != torch.int8:
        return value
    return dequantize(value, weights.get(f"{name}_scale"), torch.float32)
