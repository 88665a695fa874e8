"""Which layers are quantized and how: one rule for a model in memory and for tensors on disk.

Embeddings, norms and the patch embedding keep their dtype: they are looked up, tiny, or fed with pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from sightline.checkpoints.names import canonical
from sightline.errors import UsageError
from sightline.models.quantization.int4 import GROUP, GROUPS

KINDS = ("int8", "int4")
HEAD = "lm_head"
_NOT_LINEAR = ("embed_tokens", "pos_embed", "patch_embed")


@dataclass(frozen=True)
class Scheme:
    """What becomes of each linear layer.

    Attributes:
        kind: "int8": every linear layer in 8 bit. "int4": the language model's layers in 4 bit; in 8 bit the
            vision tower, which works on thousands of patches at once, where 4 bit would gain nothing, and the
            head, which 4 bit harm most and hardly speed up.
        group: inputs that share a scale in 4 bit.
        skip: shell patterns of layer names that keep their dtype, as `*.down_proj` or `visual.*`.

    Raises:
        UsageError: an unknown kind or group size.
    """

    kind: str
    group: int = GROUP
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"quantization {self.kind!r} is not one of {', '.join(KINDS)}")
        if self.group not in GROUPS:
            raise UsageError(f"group size {self.group} is not one of {', '.join(map(str, GROUPS))}")

    def of(self, layer: str, shape: tuple[int, ...]) -> str | None:
        """ "int8", "int4" or None for a linear layer by its name (any generation's) and weight shape [N, K]."""
        name = canonical(layer + ".")[:-1]
        if self.skips(layer):
            return None
        if self.kind == "int8" or name == HEAD or name.startswith("visual."):
            return "int8"
        return "int4" if shape[1] % self.group == 0 else None

    def skips(self, layer: str) -> bool:
        """Whether a pattern names the layer, by its name in the file or without what stands before it."""
        name = canonical(layer + ".")[:-1]
        names = (layer, name, name.removeprefix("text."))
        return any(fnmatchcase(each, pattern) for each in names for pattern in self.skip)


def is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of a checkpoint is the weight of a linear layer."""
    return (
        name.endswith(".weight")
        and len(shape) == 2
        and not any(part in name.split(".") for part in _NOT_LINEAR)
    )
