"""Logits of a model that does not fit into memory: each part of it is read when it computes, and dropped after.

Adapters are put on as they are in training, beside the linear maps they belong to, not summed into their weights:
what is computed here knows nothing of how a merge does its sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sightline.checkpoints.adapter import Adapter, Change, follow_tie, open_adapter
from sightline.checkpoints.names import canonical
from sightline.checkpoints.store import Store, read_config
from sightline.errors import SightlineError

if TYPE_CHECKING:
    import torch


_EMBEDDING = "text.embed_tokens.weight"


def layered_logits(
    folder: str | Path,
    inputs: dict[str, torch.Tensor],
    adapters: Sequence[str | Path] = (),
    weights: Sequence[float] = (),
) -> torch.Tensor:
    """[1, tokens, vocabulary] in float32, of a folder's model with adapters on it.

    Raises:
        SightlineError: the folder or an adapter cannot be used.
    """
    import torch
    from accelerate import cpu_offload

    from sightline.checkpoints.verify import build_empty

    store = Store(folder)
    opened = [open_adapter(one, store) for one in adapters]
    head, embedding = "lm_head.weight", {canonical(name): name for name in store}.get(_EMBEDDING)
    if embedding and (head not in store or read_config(folder).get("tie_word_embeddings")):
        for adapter in opened:
            follow_tie(adapter, embedding, head)
    model = build_empty(folder)
    changes = [
        (adapter, change, weight)
        for adapter, weight in zip(opened, weights, strict=True)
        for change in adapter.changes.values()
    ]
    source = _Weights(store, changes)
    cpu_offload(model, torch.device("cpu"), state_dict=source)
    _put_beside(model, changes)
    with torch.inference_mode():
        logits: torch.Tensor = model.eval()(**inputs).logits
    return logits


class _Weights(Mapping[str, Any]):
    """The tensors of a model by its parameters' names, in float32; read anew each time they are asked for."""

    def __init__(self, store: Store, changes: Sequence[tuple[Adapter, Change, float]]) -> None:
        self._store = store
        self._names = {canonical(name): name for name in store}
        # What cannot be put beside a linear map is a tensor of the model itself.
        self._replaced: dict[str, list[tuple[Adapter, Change, float]]] = {}
        for adapter, change, weight in changes:
            if not _is_beside(change):
                self._replaced.setdefault(canonical(change.target), []).append((adapter, change, weight))

    def __getitem__(self, name: str) -> torch.Tensor:
        from sightline.checkpoints.update import Part, Update

        ours = canonical(name)
        stored = self._names.get(ours) or self._names[_EMBEDDING]  # a tied head has none
        tensor = self._store.get(stored).float()
        if ours not in self._replaced:
            return tensor
        wide = tensor.reshape(len(tensor), -1)
        parts = [Part(*one) for one in self._replaced[ours]]
        update = Update(lambda first, last: wide[first:last], len(wide), parts)
        return update.rows(0, len(wide)).reshape(tensor.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._store)

    def __len__(self) -> int:
        return len(self._store)


def _is_beside(change: Change) -> bool:
    """Whether it is LoRA of a linear map and nothing more."""
    plain = change.whole is None and change.tokens is None and change.magnitude is None
    return plain and not change.embedding and len(change.shape) == 2


def _put_beside(model: Any, changes: Sequence[tuple[Adapter, Change, float]]) -> None:
    modules = {canonical(f"{name}.weight"): module for name, module in model.named_modules()}
    for adapter, change, weight in changes:
        if not _is_beside(change):
            continue
        module = modules.get(canonical(change.target))
        if module is None:
            raise SightlineError(
                f"{adapter.folder} changes {change.target}, which the built model does not have"
            )
        module.register_forward_hook(_addition(adapter, change, weight))


def _addition(adapter: Adapter, change: Change, weight: float) -> Callable[..., Any]:
    assert change.a is not None
    assert change.b is not None
    down = adapter.store.get(change.a).float()
    up = adapter.store.get(change.b).float() * (change.scale * weight)

    def add(module: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        return output + (inputs[0].float() @ down.T) @ up.T

    return add
