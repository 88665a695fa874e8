"""A model in memory with quantized linear layers: made from a float one, or read from a quantized folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sightline.checkpoints.names import canonical
from sightline.checkpoints.store import Store, read_config
from sightline.errors import SightlineError
from sightline.models.quantization.int4 import GROUPS, Int4Linear
from sightline.models.quantization.int8 import Int8Linear
from sightline.models.quantization.linear import QuantizedLinear
from sightline.models.quantization.scheme import HEAD, Scheme
from sightline.models.quantization.weights import named


@dataclass
class Report:
    """How many layers became what; `kept` names those that keep their dtype though no pattern asked for it."""

    int8: int = 0
    int4: int = 0
    kept: list[str] = field(default_factory=list)


def quantization_of(folder: str | Path) -> str | None:
    """ "int8" or "int4" for a folder that `sightline quantize` or another tool of its format wrote, else None.

    Raises:
        SightlineError: no model folder, or quantized in a way that is not supported.
    """
    settings = read_config(folder).get("quantization_config")
    if settings is None:
        return None
    groups = settings.get("config_groups") if isinstance(settings, dict) else None
    if not isinstance(groups, dict) or settings.get("quant_method") != "compressed-tensors":
        raise SightlineError(
            f"{folder} is quantized by another method than compressed-tensors' int8 and int4; give the float model"
        )
    kinds = {_kind_of_group(folder, group) for group in groups.values()}
    return "int4" if "int4" in kinds else "int8"


def quantize_module(
    module: Any, kind: str, *, group: int | None = None, skip: tuple[str, ...] = ()
) -> Report:
    """Quantize the linear layers of a transformers model in place, the head included; for inference only.

    A tied head is quantized from the embedding, which stays as it is. Layers are laid out for their device at
    the first use or by `prepare`, so move the model before that. An adapter must be merged first.

    Raises:
        SightlineError: a weight holds nan or infinite numbers; the text names it.
    """
    scheme = Scheme(kind, skip=skip) if group is None else Scheme(kind, group, skip)
    report = Report()
    for name, layer in list(module.named_modules()):
        if not isinstance(layer, nn.Linear):
            continue
        chosen = scheme.of(name, tuple(layer.weight.shape))
        if chosen is not None:
            with named(f"{name}.weight"):
                module.set_submodule(name, _from_float(chosen, layer.weight, layer.bias, scheme.group))
        _count(report, chosen, name, scheme)
    return report


def prepare(module: Any) -> None:
    """Lay out every quantized layer for the device it is on, now instead of at its first use."""
    for layer in module.modules():
        if isinstance(layer, QuantizedLinear):
            layer.prepare()


def load_quantized(
    module_class: Any, config: Any, folder: str | Path, *, dtype: torch.dtype, attention: str = "sdpa"
) -> Any:
    """Build a model and fill it from a quantized folder; transformers' own integration is not needed.

    Args:
        module_class: the transformers class with language-model head.
        config: its configuration, read from `folder`.
        dtype: of everything that is not quantized.
        attention: an implementation that transformers knows.

    The head is quantized to 8 bit from the 16 bit copy in the folder.

    Raises:
        SightlineError: tensors are missing, left over or of another shape, or of a form that is not supported.
    """
    if quantization_of(folder) is None:
        raise SightlineError(f"{folder} is not a quantized model: its config.json has no quantization_config")
    module = _empty(module_class, config, dtype, attention)
    store = Store(folder)
    stored = {canonical(name): name for name in store}
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in list(module.named_modules()):
        if isinstance(layer, nn.Linear):
            found = _stored_layer(store, stored, name, layer, dtype)
            if found is not None:
                module.set_submodule(name, found)
    wanted = {name for name, _ in module.named_parameters()}
    tied = _is_tied(module)
    if tied:
        wanted.discard(f"{HEAD}.weight")
        stored.pop(f"{HEAD}.weight", None)
    for name in sorted(wanted):
        source = stored.pop(canonical(name), None)
        if source is None:
            raise SightlineError(f"the weights in {folder} lack {name}; the checkpoint is incomplete")
        if not store.dtype(source).startswith(("F", "BF")):
            raise SightlineError(f"{source} in {folder} holds integers, but the folder lacks their scale")
        tensors[name] = store.get(source).to(dtype)
    if stored:
        first = next(iter(stored.values()))
        raise SightlineError(
            f"{folder} holds {len(stored)} tensors that have no place in the model, first {first}"
        )
    _fill(module, tensors, folder)
    if tied:
        module.lm_head.weight = module.get_input_embeddings().weight
    if isinstance(module.lm_head, nn.Linear):
        with named(f"{HEAD}.weight", folder):
            module.lm_head = Int8Linear.from_linear(module.lm_head.weight, module.lm_head.bias)
    return module.eval()


def _kind_of_group(folder: str | Path, group: Any) -> str:
    weights = group.get("weights") or {} if isinstance(group, dict) else {}
    bits, strategy = weights.get("num_bits"), weights.get("strategy")
    plain = weights.get("type") == "int" and weights.get("symmetric") and not weights.get("actorder")
    if plain and bits == 8 and strategy == "channel" and group.get("input_activations"):
        return "int8"
    if plain and bits == 4 and strategy == "group" and weights.get("group_size") in GROUPS:
        return "int4"
    raise SightlineError(
        f"{folder} is quantized in a way that is not supported ({bits} bit, {strategy}); supported are symmetric "
        f"8 bit with a scale for each channel and 4 bit with groups of {', '.join(map(str, GROUPS))}"
    )


def _empty(module_class: Any, config: Any, dtype: torch.dtype, attention: str) -> Any:
    """The module with parameters that have no memory yet; buffers, which no file holds, are real."""
    from accelerate import init_empty_weights

    if hasattr(config, "quantization_config"):
        del config.quantization_config  # transformers would look for the library
    with init_empty_weights(include_buffers=False):
        return module_class._from_config(config, dtype=dtype, attn_implementation=attention)


def _stored_layer(
    store: Store, stored: dict[str, str], name: str, layer: nn.Linear, dtype: torch.dtype
) -> nn.Module | None:
    """The quantized layer whose tensors the folder holds, which are taken out of `stored`; None for a float one."""
    place = canonical(name + ".")
    scale = stored.pop(place + "weight_scale", None)
    if scale is None:
        return None
    packed = stored.pop(place + "weight_packed", None)
    stored.pop(place + "weight_shape", None)
    weight = packed if packed is not None else stored.pop(place + "weight", None)
    if weight is None:
        raise SightlineError(f"{store.path} holds {scale} but not the weight beside it")
    bias = None
    if layer.bias is not None:
        source = stored.pop(place + "bias", None)
        if source is None:
            raise SightlineError(f"the weights in {store.path} lack the bias of {name}")
        bias = store.get(source).to(dtype)
    rows, columns = layer.out_features, layer.in_features
    wanted = ((rows, columns // 8), "I32") if packed is not None else ((rows, columns), "I8")
    if (store.shape(weight), store.dtype(weight)) != wanted:
        raise SightlineError(
            f"{weight} in {store.path} does not have the shape and dtype that config.json says"
        )
    steps = store.shape(scale)
    groups = {columns // group for group in GROUPS if columns % group == 0} if packed is not None else {1}
    if len(steps) != 2 or steps[0] != rows or steps[1] not in groups:
        raise SightlineError(f"{scale} in {store.path} has the shape {list(steps)}, which fits no group size")
    made = Int4Linear if packed is not None else Int8Linear
    scales = store.get(scale)
    return made(store.get(weight), scales.to(torch.bfloat16) if packed is not None else scales, bias)


def _fill(module: Any, tensors: dict[str, torch.Tensor], folder: str | Path) -> None:
    shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            raise SightlineError(f"{name} in {folder} does not have the shape that config.json says")
    module.load_state_dict(tensors, strict=False, assign=True)


def _is_tied(module: Any) -> bool:
    settings = (module.config, module.config.get_text_config())
    return any(getattr(each, "tie_word_embeddings", False) for each in settings)


def _from_float(kind: str, weight: torch.Tensor, bias: torch.Tensor | None, group: int) -> nn.Module:
    if kind == "int4":
        return Int4Linear.from_linear(weight, bias, group=group)
    return Int8Linear.from_linear(weight, bias)


def _count(report: Report, chosen: str | None, name: str, scheme: Scheme) -> None:
    report.int8 += chosen == "int8"
    report.int4 += chosen == "int4"
    if chosen is None and not scheme.skips(name):
        report.kept.append(name)
