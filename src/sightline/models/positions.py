"""M-RoPE positions by the model's own `get_rope_index`, computed without building the model."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from sightline.data.conversation import RowError
from sightline.models.families import Family


class RopePositions:
    """Positions in time, height and width of every token of one sequence.

    The method of the transformers class needs nothing but the configuration, so it is called on a stand-in that
    holds only that. Loader processes can then work positions out without the weights.
    """

    def __init__(self, family: Family, config: Any) -> None:
        self._family = family
        inner = _inner_class(family)
        self._owner = SimpleNamespace(config=config)
        self._owner.get_vision_position_ids = partial(inner.get_vision_position_ids, self._owner)
        self._rope_index = partial(inner.get_rope_index, self._owner)

    def __call__(
        self,
        input_ids: torch.Tensor,
        kinds: torch.Tensor,
        image_grid_thw: torch.Tensor | None,
        video_grid_thw: torch.Tensor | None,
        second_per_grid_ts: list[float] | None,
    ) -> tuple[torch.Tensor, int]:
        """Args are of one sequence: ids and kinds (0 text, 1 image, 2 video) int64 [T], grids int64 [n, 3].

        Returns:
            (int64 [3, T], what to add to a token's index to get its position when generating)

        Raises:
            RowError: two media of a kind have no token between them.
        """
        extra: dict[str, Any] = {}
        if self._family.clip_seconds and second_per_grid_ts:
            extra["second_per_grid_ts"] = torch.tensor(second_per_grid_ts)
        try:
            positions, delta = self._rope_index(
                input_ids=input_ids[None],
                mm_token_type_ids=kinds[None],
                image_grid_thw=image_grid_thw,
                video_grid_thw=video_grid_thw,
                **extra,
            )
        except RuntimeError as error:
            # It takes neighbouring vision tokens of one kind for one medium, whose grid then is too small.
            raise RowError(
                "two pictures or clips stand side by side in the prompt; write <|vision_end|><|vision_start|> "
                "between their placeholders"
            ) from error
        return positions[:, 0], int(delta[0, 0])


def _inner_class(family: Family) -> Any:
    """The class under the language-model head, which owns the position arithmetic."""
    import importlib

    package = family.model_class().__module__
    return getattr(
        importlib.import_module(package), family.class_name.replace("ForConditionalGeneration", "Model")
    )
