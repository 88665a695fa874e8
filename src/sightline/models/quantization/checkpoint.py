"""A quantized copy of a checkpoint, tensor by tensor, in the layout of compressed-tensors; no model is built.

The layout is what vLLM and transformers read: 8 bit weights as int8 [N, K] with a scale for each row, 4 bit ones eight
to an int32 with a scale for each group. The head stays in its dtype, as those libraries expect; Sightline quantizes
it when it loads the folder.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.checkpoints import companions
from sightline.checkpoints.names import canonical
from sightline.checkpoints.shards import parse_size, write_shards
from sightline.checkpoints.store import Store, read_config
from sightline.errors import SightlineError, UsageError
from sightline.files import replacing_folder, write_json
from sightline.models.quantization.scheme import HEAD, Scheme, is_linear
from sightline.models.quantization.weights import named, pack_int4, quantize_int4, quantize_int8
from sightline.progress import track

if TYPE_CHECKING:
    import torch

# The linear layers of each part, by their module names in transformers and vLLM.
_TEXT = r"re:.*layers[.]\d+[.](self_attn|mlp)[.]\w+_proj$"
_VISION = r"re:.*visual[.](blocks|merger|deepstack_merger_list)[.].*(qkv|proj|fc[12]|mlp[.][02])$"


@dataclass(frozen=True)
class QuantizeReport:
    """What was written. `kept` are the linear layers in their old dtype, the head not counted; bytes of tensors."""

    output: Path
    kind: str
    int8: int
    int4: int
    kept: int
    bytes_before: int
    bytes: int
    seconds: float


def quantize(
    model: str | Path,
    output: str | Path,
    kind: str,
    *,
    group: int | None = None,
    skip: tuple[str, ...] = (),
    max_shard_size: str | int = "5GB",
) -> QuantizeReport:
    """Write the float model in the folder `model` with its linear layers in 8 or 4 bit to the new folder `output`.

    Raises:
        UsageError: unknown kind or group size, or a pattern of `skip` that fits no layer.
        SightlineError: `model` is unusable, holds nan or is quantized already, or `output` is taken; nothing is
            written then.
    """
    start = time.perf_counter()
    limit = parse_size(max_shard_size)
    scheme = Scheme(kind, skip=skip) if group is None else Scheme(kind, group, skip)
    config = read_config(model)
    if config.get("quantization_config") is not None:
        raise SightlineError(f"{model} is quantized already; give the model that it was made from")
    store = Store(model)
    names = _names(config, store)
    plan = _plan(store, names, scheme)
    with replacing_folder(output) as folder:
        written = write_shards(folder, _quantized(store, names, plan, scheme), limit)
        companions.copy(Path(model), folder)
        write_json(folder / "config.json", {**config, "quantization_config": settings(scheme, plan)})
    chosen = list(plan.values())
    return QuantizeReport(
        output=Path(output),
        kind=kind,
        int8=chosen.count("int8"),
        int4=chosen.count("int4"),
        kept=chosen.count(None),
        bytes_before=store.bytes,
        bytes=written,
        seconds=time.perf_counter() - start,
    )


def settings(scheme: Scheme, plan: dict[str, str | None]) -> dict[str, Any]:
    """The quantization_config of config.json, from the kind of each layer by its name in the file."""
    kinds = sorted({kind for kind in plan.values() if kind is not None})
    targets = {"int8": ["Linear"] if kinds == ["int8"] else [_VISION], "int4": [_TEXT]}
    kept = sorted(layer for layer, kind in plan.items() if kind is None)
    groups = {f"group_{place}": _group(kind, targets[kind], scheme) for place, kind in enumerate(kinds)}
    formats = [group["format"] for group in groups.values()]
    return {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats[0] if len(formats) == 1 else "mixed-precision",
        "config_groups": groups,
        "ignore": [HEAD, *(_pattern(layer) for layer in kept)],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _names(config: dict[str, Any], store: Store) -> list[str]:
    """The tensors to take over: all but the copy that some files hold of a tied head."""
    text = config.get("text_config") or {}
    tied = bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
    return [name for name in store if not (tied and canonical(name) == f"{HEAD}.weight")]


def _plan(store: Store, names: list[str], scheme: Scheme) -> dict[str, str | None]:
    """Each linear layer's kind by its name; the head has none of its own."""
    layers = {
        name.removesuffix(".weight"): store.shape(name)
        for name in names
        if is_linear(name, store.shape(name)) and canonical(name) != f"{HEAD}.weight"
    }
    for pattern in scheme.skip:
        if not any(Scheme(scheme.kind, skip=(pattern,)).skips(layer) for layer in layers):
            example = next(iter(layers), "")
            raise UsageError(f"--skip {pattern} fits no linear layer of {store.path}; one is {example}")
    plan = {layer: scheme.of(layer, shape) for layer, shape in layers.items()}
    if not any(plan.values()):
        raise SightlineError(
            f"no layer of {store.path} can be quantized to {scheme.kind} with these settings"
        )
    return plan


def _quantized(
    store: Store, names: list[str], plan: dict[str, str | None], scheme: Scheme
) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    for name in track(names, "quantizing", total=len(names)):
        kind = plan.get(name.removesuffix(".weight")) if name.endswith(".weight") else None
        tensor = store.get(name)
        if kind is None:
            yield name, tensor.contiguous()
        elif kind == "int8":
            with named(name, store.path):
                integers, scale = quantize_int8(tensor)
            yield name, integers
            yield f"{name}_scale", scale
        else:
            with named(name, store.path):
                integers, scale = quantize_int4(tensor, scheme.group)
            yield f"{name}_packed", pack_int4(integers)
            yield f"{name}_scale", scale
            yield f"{name}_shape", torch.tensor(tensor.shape)


def _group(kind: str, targets: list[str], scheme: Scheme) -> dict[str, Any]:
    if kind == "int8":
        weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
        inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
        return {
            "targets": targets,
            "weights": weights,
            "input_activations": inputs,
            "output_activations": None,
            "format": "int-quantized",
        }
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "dynamic": False}
    return {
        "targets": targets,
        "weights": weights | {"group_size": scheme.group},
        "input_activations": None,
        "output_activations": None,
        "format": "pack-quantized",
    }


def _pattern(layer: str) -> str:
    """A pattern for one layer under any of the names that it has in transformers and vLLM."""
    return "re:(.*[.])?" + re.escape(canonical(layer + ".")[:-1].removeprefix("text.")) + "$"
