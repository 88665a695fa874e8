"""The authors' text encoder file (`models_t5_umt5-xxl-enc-bf16.pth`): names of transformers' `UMT5EncoderModel`.

Names and forward are those of `T5Encoder` in wan/modules/t5.py of Wan-Video/Wan2.1, with a table of relative positions
in each block. Its feed-forward is `fc2(fc1(x) * gelu(gate(x)))`, and transformers' `wo(gelu(wi_0(x)) * wi_1(x))`: the
gate is `wi_0`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from sightline.errors import SightlineError
from sightline.video.loading.names import count, renamed, swapped
from sightline.video.loading.tensors import Tensors

KIND = "Wan's text encoder"

_OUTSIDE = (("token_embedding.", "shared."), ("norm.", "encoder.final_layer_norm."))
_BLOCK = (
    ("norm1.", "layer.0.layer_norm."),
    ("attn.q.", "layer.0.SelfAttention.q."),
    ("attn.k.", "layer.0.SelfAttention.k."),
    ("attn.v.", "layer.0.SelfAttention.v."),
    ("attn.o.", "layer.0.SelfAttention.o."),
    ("pos_embedding.embedding.", "layer.0.SelfAttention.relative_attention_bias."),
    ("norm2.", "layer.1.layer_norm."),
    ("ffn.gate.0.", "layer.1.DenseReluDense.wi_0."),
    ("ffn.fc1.", "layer.1.DenseReluDense.wi_1."),
    ("ffn.fc2.", "layer.1.DenseReluDense.wo."),
)
_NUMBERED = re.compile(r"blocks\.(\d+)\.(.+)")
_FIRST = "encoder.block.0.layer."


def is_original(names: Iterable[str]) -> bool:
    """Whether the names are the authors', and not transformers'."""
    return any(name.startswith(("token_embedding.", "blocks.0.attn.")) for name in names)


def to_transformers(tensors: Tensors) -> Tensors:
    """The same tensors by transformers' names.

    Raises:
        SightlineError: a tensor is not of this encoder.
    """
    return renamed(tensors, ((name, _name(name)) for name in tensors.entries), KIND)


def config_of(tensors: Tensors) -> dict[str, Any]:
    """The config of a `UMT5EncoderModel` by the shapes of its tensors; what shapes do not tell is as in t5.py.

    Args:
        tensors: by transformers' names.

    Raises:
        SightlineError: a tensor that tells a size is missing, or the sizes do not fit one another.
    """
    vocabulary, width = _pair(tensors, "shared.weight")
    buckets, heads = _pair(tensors, f"{_FIRST}0.SelfAttention.relative_attention_bias.weight")
    inner, _ = _pair(tensors, f"{_FIRST}0.SelfAttention.q.weight")
    if not heads or inner % heads:
        raise SightlineError(f"{tensors.where}: {heads} heads do not divide the {inner} rows of its queries")
    return {
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": inner // heads,
        "d_ff": _pair(tensors, f"{_FIRST}1.DenseReluDense.wi_0.weight")[0],
        "num_layers": count(tensors.entries, "encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
    }


def _name(name: str) -> str | None:
    match = _NUMBERED.fullmatch(name)
    if match is None:
        return swapped(name, _OUTSIDE)
    inside = swapped(match[2], _BLOCK)
    return None if inside is None else f"encoder.block.{match[1]}.{inside}"


def _pair(tensors: Tensors, name: str) -> tuple[int, int]:
    shape = tensors.shape(name)
    if len(shape) != 2:
        raise SightlineError(
            f"{tensors.where}: {name} is {list(shape)}, and should have 2 dimensions in {KIND}"
        )
    return shape[0], shape[1]
