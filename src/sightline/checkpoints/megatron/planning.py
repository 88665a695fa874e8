"""How many layers each pipeline rank should have, where the user does not say."""

from __future__ import annotations

import math

from sightline.checkpoints.megatron.architecture import Architecture
from sightline.checkpoints.megatron.stages import Pipeline, Stages, balanced
from sightline.errors import SightlineError, UsageError


def balance(model: Architecture, pp: int, lists: str | None = None) -> Pipeline:
    """Stages of about the same number of weights: the tower first, the language model behind it.

    Raises:
        UsageError: lists are given too. SightlineError: fewer layers than ranks.
    """
    if lists:
        raise UsageError("--auto chooses the layers of each rank; leave --pp-llm and --pp-vit out")
    sizes = {name: math.prod(shape) for name, shape in model.tensors().items()}

    def layers(prefix: str, count: int) -> list[int]:
        return [
            sum(size for name, size in sizes.items() if name.startswith(f"{prefix}{layer}."))
            for layer in range(count)
        ]

    embedding = sizes["text.embed_tokens.weight"]
    # A tied model over several ranks has its embedding once more as its head.
    head = sizes.get("lm_head.weight", embedding if pp > 1 else 0)
    vision = layers("visual.blocks.", model.vision_layers)
    vision[0] += sizes["visual.patch_embed.proj.weight"]
    vision[-1] += sum(size for name, size in sizes.items() if name.startswith("visual.merger."))
    return balanced(pp, (vision, layers("text.layers.", model.layers)), (embedding, head))


def even(layers: int, pp: int) -> Stages:
    """Blocks that are all alike, over so many ranks; what is left over goes to the last ones.

    Raises:
        SightlineError: fewer blocks than ranks.
    """
    if layers < pp:
        raise SightlineError(f"{layers} blocks cannot fill {pp} stages; use fewer")
    each, more = divmod(layers, pp)
    return Stages((tuple(each + (rank >= pp - more) for rank in range(pp)),))
