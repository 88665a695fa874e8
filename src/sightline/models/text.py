"""The language model as the engine runs it: packed tokens of many sequences through the transformers module.

`TransformersText` is the plain path, which every other form is tested against.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from sightline.hardware.operators.attention.paged import PagedAttention, Plan
from sightline.models.adapters.low_rank import Group, Pair, add
from sightline.models.attention import PAGED, Paged, register


class Deepstack:
    """Vision features that the first layers add to their output (Qwen3-VL).

    Attributes:
        rows: int64 [n], the packed tokens that stand for vision.
        levels: one [n, H] for each layer from the first on.
    """

    def __init__(self, rows: torch.Tensor, levels: list[torch.Tensor]) -> None:
        self.rows = rows
        self.levels = levels


class Text(Protocol):
    """A packed forward."""

    def __call__(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        plan: Plan,
        deepstack: Deepstack | None = None,
        groups: Sequence[Group] = (),
    ) -> torch.Tensor:
        """
        Args:
            embeds: [T, H]; positions: int64 [3, T], M-RoPE.
            plan: of `T` packed tokens, made by the attention that this was built with.
            groups: the rows of each adapter, with its layers as `join` gave them; other rows are the base's.

        Returns:
            [T, H], after the final norm.
        """
        ...

    def join(self, layer: int, pairs: Mapping[str, Pair]) -> Mapping[str, Pair]:
        """An adapter's changes of one decoder layer, given by the names of its linear maps, as this computes them."""
        ...


class TransformersText:
    """The module of transformers as it is, with attention over the cache."""

    def __init__(self, language_model: Any, attention: PagedAttention) -> None:
        register()
        language_model.config._attn_implementation = PAGED
        self._module = language_model
        self._attention = attention

    def __call__(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        plan: Plan,
        deepstack: Deepstack | None = None,
        groups: Sequence[Group] = (),
    ) -> torch.Tensor:
        extra: dict[str, Any] = {}
        if deepstack is not None:
            mask = torch.zeros(len(embeds), dtype=torch.bool, device=embeds.device)
            mask[deepstack.rows] = True
            extra = {"visual_pos_masks": mask[None], "deepstack_visual_embeds": deepstack.levels}
        with self._adapted(groups):
            output = self._module(
                inputs_embeds=embeds[None],
                position_ids=positions[:, None],
                use_cache=False,
                paged=Paged(self._attention, plan),
                **extra,
            )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden

    def join(self, layer: int, pairs: Mapping[str, Pair]) -> Mapping[str, Pair]:
        return pairs

    @contextmanager
    def _adapted(self, groups: Sequence[Group]) -> Iterator[None]:
        """Let the linear maps add what adapters change, for one forward: a step without any has no hooks."""
        if not groups:
            yield
            return
        handles = []
        try:
            for index, layer in enumerate(self._module.layers):
                for name in {name for group in groups for name in group.layers[index]}:
                    parent = layer.self_attn if hasattr(layer.self_attn, name) else layer.mlp
                    hook = _adding(groups, index, name)
                    handles.append(getattr(parent, name).register_forward_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()


def _adding(groups: Sequence[Group], layer: int, name: str) -> Any:
    """A forward hook that adds the changes of one linear map to what it gives for [1, T, K]."""

    def hook(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        # Of a spread model the input may come from another device. The output is written to: no copy will do.
        rows = inputs[0].flatten(0, -2).to(output.device)
        add(groups, layer, name, rows, output.view(-1, output.shape[-1]))

    return hook
