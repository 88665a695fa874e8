"""A PEFT LoRA folder as changes to a base's tensors, each with its place found and its shape checked.

The change of a linear layer is `scale * B @ A` with A [r, in] and B [out, r], of an embedding
`scale * (B @ A).T` with A [r, rows] and B [width, r]; `scale` is alpha / r, or alpha / sqrt(r) for rsLoRA
(PEFT's `tuners/lora/layer.py`). Everything else an adapter file holds is a whole tensor that takes the
base's place (`modules_to_save`, trained biases).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sightline.checkpoints.names import canonical, unwrapped
from sightline.checkpoints.store import Store, read_json
from sightline.errors import SightlineError

if TYPE_CHECKING:
    import torch

# Settings of LoraConfig under which `B @ A` is not the whole story. The name that users know, per setting.
_OTHER_METHODS = {
    "use_dora": "DoRA",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "kasa_config": "KaSA",
    "arrow_config": "Arrow",
    "monteclora_config": "MonteCLoRA",
    "alora_invocation_tokens": "activated LoRA (aLoRA)",
    "target_parameters": "LoRA on bare parameters (target_parameters)",
    "trainable_token_indices": "trainable tokens",
    "layer_replication": "layer replication",
    "ensure_weight_tying": "ensure_weight_tying",
    "lora_bias": "LoRA with a bias (lora_bias)",
}
# Those of them that a merge can do, though batches of several adapters cannot.
_MERGEABLE = ("use_dora", "trainable_token_indices")
# Ways to start a LoRA that leave the base as it is. The others (PiSSA, OLoRA, CorDA, LoftQ, ...) change it.
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
_MAGNITUDE = re.compile(r"^(?P<module>.+)\.lora_magnitude_vector(\.weight)?$")
_TOKENS = re.compile(r"^(?P<module>.+)\.token_adapter\.trainable_tokens_delta$")
_PAIR = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?$")


class Shapes(Protocol):
    """Names and shapes of a base's tensors: a `Store`, or a model in memory. `path` is what errors call it."""

    path: Path

    def __iter__(self) -> Iterator[str]: ...

    def __contains__(self, name: object) -> bool: ...

    def shape(self, name: str) -> tuple[int, ...]: ...


@dataclass
class Change:
    """What happens to one tensor of the base: replaced by `whole`, then `scale * B @ A` added."""

    target: str
    shape: tuple[int, ...]
    whole: str | None = None
    a: str | None = None
    b: str | None = None
    embedding: bool = False
    scale: float = 1.0
    magnitude: str | None = None
    tokens: str | None = None


@dataclass
class Adapter:
    """An adapter folder. `settings` is its adapter_config.json."""

    folder: Path
    store: Store
    settings: dict[str, Any]
    changes: dict[str, Change] = field(default_factory=dict)

    @property
    def turned(self) -> bool:
        """Whether the base stores its linear maps as [in, out]."""
        return bool(self.settings.get("fan_in_fan_out"))

    def changed(self, base: torch.Tensor, name: str) -> torch.Tensor:
        """The tensor `name` of the base with the adapter in it: summed in float32, given in `base.dtype`."""
        from sightline.checkpoints.update import Part, Update

        change = self.changes.get(name)
        if change is None:
            return base
        wide = base.reshape(base.shape[0] if base.shape else 1, -1)
        update = Update(lambda first, last: wide[first:last], len(wide), [Part(self, change)])
        return update.rows(0, len(wide)).reshape(base.shape)


def base_of(folder: str | Path) -> str:
    """The base model that an adapter folder names.

    Raises:
        SightlineError: not an adapter folder, or it names none.
    """
    name = read_settings(folder).get("base_model_name_or_path")
    if not name:
        raise SightlineError(f"{folder}/adapter_config.json names no base model; give it with --model")
    return str(name)


def open_adapter(folder: str | Path, base: Shapes) -> Adapter:
    """Read an adapter and find the place of each of its tensors in `base`.

    Raises:
        SightlineError: not a LoRA adapter, a method that is not built yet, or a tensor without a place or
            with another shape than its place.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    _refuse_other_methods(folder, settings)
    if not (folder / "adapter_model.safetensors").is_file():
        if (folder / "adapter_model.bin").is_file():
            raise SightlineError(f"{folder} has its adapter as a pickled .bin; save it as safetensors")
        raise SightlineError(f"{folder} has no adapter_model.safetensors; was the training cut short?")
    adapter = Adapter(folder, Store(folder / "adapter_model.safetensors"), settings)
    places = _places(base)
    for name in adapter.store:
        _place(adapter, name, places, base)
    for change in adapter.changes.values():
        _check(adapter, change)
    if not adapter.changes:
        raise SightlineError(f"{folder} holds no tensors")
    return adapter


def check_base(adapter: Adapter, config: dict[str, Any]) -> None:
    """Whether an adapter says that it was trained on another kind of model: itself, or by a base that it names and that
    is there. Two families can have layers of the same names and sizes.

    Raises:
        SightlineError: it does; the text names both.
    """
    named = adapter.settings.get("base_model_name_or_path")
    trained = (adapter.settings.get("auto_mapping") or {}).get("base_model_class")
    if not trained and named and (Path(named) / "config.json").is_file():
        trained = (read_json(Path(named) / "config.json", "").get("architectures") or [None])[0]
    kinds = config.get("architectures") or []
    if trained and kinds and trained not in kinds:
        raise SightlineError(f"{adapter.folder} was trained on a {trained}, but the base is a {kinds[0]}")


def follow_tie(adapter: Adapter, embedding: str, head: str) -> None:
    """Single tokens that were trained in a tied embedding are those of the head too: PEFT puts them on both. LoRA on
    the embedding, or the embedding trained whole, leaves the head the base's."""
    change = adapter.changes.get(embedding)
    if change is not None and change.tokens is not None:
        adapter.changes.setdefault(head, replace(change, target=head))


def read_settings(folder: str | Path) -> dict[str, Any]:
    """The adapter's adapter_config.json.

    Raises:
        SightlineError: not an adapter folder, or its ranks and scales are no numbers.
    """
    absent = f"{folder} is not an adapter folder: it has no adapter_config.json"
    settings = read_json(Path(folder) / "adapter_config.json", absent)
    if settings.get("peft_type", "LORA") == "LORA":
        _check_numbers(folder, settings)
    return settings


def _check_numbers(folder: str | Path, settings: dict[str, Any]) -> None:
    for name, patterns, whole in (("r", "rank_pattern", True), ("lora_alpha", "alpha_pattern", False)):
        if name in settings:
            _check_number(folder, name, settings[name], whole)
        given = settings.get(patterns) or {}
        if not isinstance(given, dict):
            raise SightlineError(
                f"{folder}/adapter_config.json: {patterns} must be an object, not {_shown(given)}"
            )
        for value in given.values():
            _check_number(folder, f"a value of {patterns}", value, whole)


def _check_number(folder: str | Path, name: str, value: Any, whole: bool) -> None:
    kinds, words = ((int,), "a whole number of 1 or more") if whole else ((int, float), "a number")
    if type(value) not in kinds or not (value >= 1 if whole else math.isfinite(value)):
        raise SightlineError(f"{folder}/adapter_config.json: {name} must be {words}, not {_shown(value)}")


def _shown(value: Any) -> str:
    return repr(value)[:80]


def other_method(settings: dict[str, Any]) -> str | None:
    """The name of what these settings ask for beside or in place of LoRA and rsLoRA, if they do."""
    method = settings.get("peft_type", "LORA")
    if method != "LORA":
        return str(method)
    return next((words for key, words in _OTHER_METHODS.items() if settings.get(key)), None)


def _refuse_other_methods(folder: Path, settings: dict[str, Any]) -> None:
    method = settings.get("peft_type", "LORA")
    if method != "LORA":
        raise SightlineError(
            f"{folder} is a {method} adapter; merging knows LoRA, rsLoRA and DoRA, not {method}"
        )
    mergeable = {key: value for key, value in settings.items() if key not in _MERGEABLE}
    if (words := other_method(mergeable)) is not None:
        raise SightlineError(f"{folder} uses {words}, which cannot be merged yet; LoRA, rsLoRA and DoRA can")
    start = settings.get("init_lora_weights")
    if not any(start is plain or start == plain for plain in _PLAIN_STARTS):
        raise SightlineError(
            f"{folder} was started with init_lora_weights={start!r}, which changes the base; convert it with "
            "PEFT's path_initial_model_for_weight_conversion first"
        )


def _places(base: Shapes) -> dict[str, str]:
    """canonical name -> name in the base."""
    places: dict[str, str] = {}
    for name in base:
        ours = canonical(name)
        if ours in places:
            raise SightlineError(f"{base.path} holds one tensor under two names: {places[ours]} and {name}")
        places[ours] = name
    # A tied model stores only its embedding; an adapter may still change the head (merge then unties them).
    if "lm_head.weight" not in places and "text.embed_tokens.weight" in places:
        places["lm_head.weight"] = "lm_head.weight"
    return places


def _place(adapter: Adapter, name: str, places: dict[str, str], base: Shapes) -> None:
    pair, magnitude, tokens = _PAIR.match(name), _MAGNITUDE.match(name), _TOKENS.match(name)
    found = pair or magnitude or tokens
    # PEFT wraps a layer that it adapts, and may save its weights (embeddings) or biases under `base_layer`.
    module = found["module"] if found else name.replace(".base_layer.", ".")
    ours = canonical(module.removesuffix(".base_layer") + ".weight" if found else module)
    if ours not in places:
        raise SightlineError(f"{adapter.folder} changes {unwrapped(module)}, which {base.path} does not have")
    target = places[ours]
    known = target if target in base else places["text.embed_tokens.weight"]
    change = adapter.changes.setdefault(target, Change(target, base.shape(known)))
    role = "magnitude" if magnitude else "tokens" if tokens else pair["side"].lower() if pair else "whole"
    if (other := getattr(change, role)) is not None:
        raise SightlineError(
            f"{adapter.folder} holds {other} and {name}, which are one tensor of {base.path}"
        )
    setattr(change, role, name)
    if pair:
        change.embedding = bool(pair["embedding"])
        change.scale = _scale(adapter.settings, unwrapped(module), adapter.store, name, pair["side"])


def token_ids(adapter: Adapter, change: Change) -> list[int]:
    """The rows of an embedding that were trained one by one (PEFT's trainable_token_indices).

    Raises:
        SightlineError: the settings name none for it, or another number than there are.
    """
    given = adapter.settings.get("trainable_token_indices")
    if isinstance(given, dict):
        module = unwrapped(change.tokens or "").partition(".token_adapter.")[0]
        given = next((ids for name, ids in given.items() if f".{module}".endswith(f".{name}")), None)
    rows, (count, width) = change.shape[0], adapter.store.shape(change.tokens or "")
    ids = given if isinstance(given, list) else []
    if len(ids) != count or len(set(ids)) != count or not all(0 <= token < rows for token in ids):
        raise SightlineError(
            f"{adapter.folder} trained {count} single tokens of {change.target}, but trainable_token_indices in "
            f"its adapter_config.json does not name {count} different ones below {rows}"
        )
    if change.shape[1:] != (width,):
        raise SightlineError(
            f"{adapter.folder}: tokens of width {width} were trained, but {change.target} of the base is "
            f"{_words(change.shape)}"
        )
    return ids


def _scale(settings: dict[str, Any], module: str, store: Store, name: str, side: str) -> float:
    rank = _pattern(settings.get("rank_pattern"), module, settings.get("r", 8))
    alpha = _pattern(settings.get("alpha_pattern"), module, settings.get("lora_alpha", 8))
    found = store.shape(name)[0 if side == "A" else 1]
    if found != rank:
        raise SightlineError(f"{store.path}: {name} has rank {found}, but adapter_config.json says {rank}")
    return float(alpha / math.sqrt(rank)) if settings.get("use_rslora") else float(alpha / rank)


def _pattern(patterns: dict[str, Any] | None, module: str, default: Any) -> Any:
    """The first pattern that matches the module's whole name or its end, as PEFT's get_pattern_key."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _check(adapter: Adapter, change: Change) -> None:
    store, place = adapter.store, f"{change.target} of the base is {_words(change.shape)}"
    if change.whole is not None and not _fits(store.shape(change.whole), change.shape):
        raise SightlineError(
            f"{adapter.folder}: {change.whole} is {_words(store.shape(change.whole))}, but {place}"
        )
    if change.tokens is not None:
        token_ids(adapter, change)
        if change.a is not None or change.whole is not None:
            raise SightlineError(
                f"{adapter.folder} trained {change.target} both by single tokens and as a whole or by LoRA; "
                "merge it with PEFT"
            )
    if change.a is None and change.b is None:
        if change.magnitude is not None:
            raise SightlineError(f"{adapter.folder}: {change.magnitude} stands alone, A and B are missing")
        return
    if change.a is None or change.b is None:
        half = unwrapped(change.a or change.b or "")
        raise SightlineError(f"{adapter.folder}: {half} stands alone, its other half is missing")
    a, b = store.shape(change.a), store.shape(change.b)
    if len(a) < 2 or math.prod(b) != b[0] * b[1]:
        raise SightlineError(f"{adapter.folder}: {change.b} is {_words(b)}, which no LoRA has")
    if a[0] != b[1]:
        raise SightlineError(f"{adapter.folder}: {change.a} has rank {a[0]}, but {change.b} has {b[1]}")
    turned = change.embedding or adapter.turned
    delta = (a[1], b[0]) if turned else (b[0], *a[1:])
    if not _fits(delta, change.shape):
        raise SightlineError(f"{adapter.folder}: its change is {_words(delta)}, but {place}")
    if adapter.settings.get("use_dora") and change.magnitude is None:
        raise SightlineError(
            f"{adapter.folder} uses DoRA, but has no lora_magnitude_vector for {change.target}"
        )
    if change.magnitude is not None:
        size = math.prod(store.shape(change.magnitude))
        if size != b[0]:
            raise SightlineError(
                f"{adapter.folder}: {change.magnitude} has {size} numbers, but the layer has {b[0]} outputs"
            )


def _fits(shape: tuple[int, ...], place: tuple[int, ...]) -> bool:
    """The same shape; or a patch embedding [out, channels, t, h, w] trained as the linear [out, c*t*h*w]."""
    if shape == place:
        return True
    return (len(shape), len(place)) == (2, 5) and shape == (place[0], math.prod(place[1:]))


def _words(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a number"
