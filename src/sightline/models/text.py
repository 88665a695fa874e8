"""The language model as the engine runs it: packed tokens of many sequences through the transformers module.

`TransformersText` is the plain path, which every other form is tested against.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from sightline.hardware.operators.attention.paged import PagedAttention, Plan
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
        self, embeds: torch.Tensor, positions: torch.Tensor, plan: Plan, deepstack: Deepstack | None = None
    ) -> torch.Tensor:
        """
        Args:
            embeds: [T, H]; positions: int64 [3, T], M-RoPE.
            plan: of `T` packed tokens, made by the attention that this was built with.

        Returns:
            [T, H], after the final norm.
        """
        ...


class TransformersText:
    """The module of transformers as it is, with attention over the cache."""

    def __init__(self, language_model: Any, attention: PagedAttention) -> None:
        register()
        language_model.config._attn_implementation = PAGED
        self._module = language_model
        self._attention = attention

    def __call__(
        self, embeds: torch.Tensor, positions: torch.Tensor, plan: Plan, deepstack: Deepstack | None = None
    ) -> torch.Tensor:
        extra: dict[str, Any] = {}
        if deepstack is not None:
            mask = torch.zeros(len(embeds), dtype=torch.bool, device=embeds.device)
            mask[deepstack.rows] = True
            extra = {"visual_pos_masks": mask[None], "deepstack_visual_embeds": deepstack.levels}
        output = self._module(
            inputs_embeds=embeds[None],
            position_ids=positions[:, None],
            use_cache=False,
            paged=Paged(self._attention, plan),
            **extra,
        )
        hidden: torch.Tensor = output.last_hidden_state[0]
        return hidden
