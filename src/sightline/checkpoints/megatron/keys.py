"""Where each tensor of Qwen2-VL and Qwen2.5-VL stands in MindSpeed-MM, how it is fused there, and how it is cut.

Names on the left are our canonical ones. The right-hand names, the order of fused rows and the rules of cutting are
those of MindSpeed-MM's checkpoint/vlm_model (converters/qwen2vl.py, qwen2_5vl.py, operator.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sightline.checkpoints.megatron.architecture import Architecture
from sightline.checkpoints.mosaic import Mosaic, stacked
from sightline.errors import UsageError

Cut = Callable[[str, Mosaic, int, int], Mosaic]


@dataclass(frozen=True)
class Rule:
    """One tensor of a layer, or of what stands before or behind the layers.

    Attributes:
        name: behind the prefix of its layer.
        sources: canonical names behind the layer's prefix.
        fuse: makes one tensor of them.
        cut: its part of a tensor-parallel rank.
    """

    name: str
    sources: tuple[str, ...]
    fuse: Callable[[Sequence[Mosaic]], Mosaic]
    cut: Cut


# Cutting over tensor-parallel ranks: (name, whole tensor, rank, ranks) -> the rank's part.


def by_rows(name: str, mosaic: Mosaic, rank: int, ranks: int) -> Mosaic:
    size = _share(name, mosaic.rows, ranks, "rows")
    return mosaic.cut(rank * size, (rank + 1) * size)


def by_columns(name: str, mosaic: Mosaic, rank: int, ranks: int) -> Mosaic:
    size = _share(name, mosaic.columns, ranks, "columns")
    return mosaic.cut_columns(rank * size, (rank + 1) * size)


def by_halves(name: str, mosaic: Mosaic, rank: int, ranks: int) -> Mosaic:
    """Gate and up are cut each, and a rank has its part of both."""
    half = mosaic.rows // 2
    halves = mosaic.cut(0, half), mosaic.cut(half, mosaic.rows)
    return stacked([by_rows(name, part, rank, ranks) for part in halves])


def on_all(name: str, mosaic: Mosaic, rank: int, ranks: int) -> Mosaic:
    return mosaic


def _share(name: str, size: int, ranks: int, what: str) -> int:
    if size % ranks:
        fits = [number for number in (1, 2, 4, 8, 16, 32) if size % number == 0]
        raise UsageError(
            f"{name} has {size} {what}, which {ranks} tensor-parallel ranks cannot share evenly; "
            f"{', '.join(map(str, fits))} can"
        )
    return size // ranks


# Fusing: whole tensors -> one.


def alone(parts: Sequence[Mosaic]) -> Mosaic:
    (part,) = parts
    return part


def grouped(groups: int) -> Callable[[Sequence[Mosaic]], Mosaic]:
    """Queries, keys and values of each group of heads beside one another: q_1, k_1, v_1, q_2, k_2, v_2, ..."""

    def fuse(parts: Sequence[Mosaic]) -> Mosaic:
        pieces = []
        for group in range(groups):
            for part in parts:
                size = part.rows // groups
                pieces.append(part.cut(group * size, (group + 1) * size))
        return stacked(pieces)

    return fuse


def regrouped(heads: int) -> Callable[[Sequence[Mosaic]], Mosaic]:
    """The same of one tensor that holds all queries, then all keys, then all values."""

    def fuse(parts: Sequence[Mosaic]) -> Mosaic:
        (part,) = parts
        third = part.rows // 3
        return grouped(heads)([part.cut(index * third, (index + 1) * third) for index in range(3)])

    return fuse


def text_layer(model: Architecture, canonical: bool) -> list[Rule]:
    """A layer of the language model: `text.layers.N.` -> `text_decoder.decoder.layers.M.`"""
    rules = [
        _same("input_layernorm.weight"),
        Rule("pre_mlp_layernorm.weight", ("post_attention_layernorm.weight",), alone, on_all),
        Rule("self_attention.linear_proj.weight", ("self_attn.o_proj.weight",), alone, by_columns),
        Rule("mlp.linear_fc2.weight", ("mlp.down_proj.weight",), alone, by_columns),
    ]
    if canonical:
        rules += [
            Rule(f"self_attention.{part}.{kind}", (f"self_attn.{part}.{kind}",), alone, by_rows)
            for part in ("q_proj", "k_proj", "v_proj")
            for kind in ("weight", "bias")
        ]
        return rules + [
            Rule(f"mlp.{part}.weight", (f"mlp.{part}.weight",), alone, by_rows)
            for part in ("gate_proj", "up_proj")
        ]
    for kind in ("weight", "bias"):
        sources = tuple(f"self_attn.{part}.{kind}" for part in ("q_proj", "k_proj", "v_proj"))
        rules.append(Rule(f"self_attention.linear_qkv.{kind}", sources, grouped(model.kv_heads), by_rows))
    return [
        *rules,
        Rule("mlp.linear_fc1.weight", ("mlp.gate_proj.weight", "mlp.up_proj.weight"), stacked, by_halves),
    ]


def vision_layer(model: Architecture, canonical: bool) -> list[Rule]:
    """A layer of the tower: `visual.blocks.N.` -> `image_encoder.encoder.blocks.layers.M.`"""
    kinds = ("weight",) if model.gated_vision else ("weight", "bias")
    norms = (("input_layernorm", "norm1"), ("pre_mlp_layernorm", "norm2"))
    rules = [
        Rule(f"{ours}.{kind}", (f"{theirs}.{kind}",), alone, on_all)
        for ours, theirs in norms
        for kind in kinds
    ]
    down = "down_proj" if model.gated_vision else "fc2"
    rules += [
        Rule("self_attention.linear_proj.weight", ("attn.proj.weight",), alone, by_columns),
        Rule("self_attention.linear_proj.bias", ("attn.proj.bias",), alone, on_all),
        Rule("mlp.linear_fc2.weight", (f"mlp.{down}.weight",), alone, by_columns),
        Rule("mlp.linear_fc2.bias", (f"mlp.{down}.bias",), alone, on_all),
    ]
    fuse = alone if canonical else regrouped(model.vision_heads)
    for kind in ("weight", "bias"):
        rules.append(Rule(f"self_attention.linear_qkv.{kind}", (f"attn.qkv.{kind}",), fuse, by_rows))
        if not model.gated_vision:
            rules.append(Rule(f"mlp.linear_fc1.{kind}", (f"mlp.fc1.{kind}",), alone, by_rows))
        elif canonical:
            rules += [
                Rule(f"mlp.{part}.{kind}", (f"mlp.{part}.{kind}",), alone, by_rows)
                for part in ("gate_proj", "up_proj")
            ]
        else:
            sources = (f"mlp.gate_proj.{kind}", f"mlp.up_proj.{kind}")
            rules.append(Rule(f"mlp.linear_fc1.{kind}", sources, stacked, by_halves))
    return rules


def vision_head() -> list[Rule]:
    """What stands before the tower's first layer."""
    name = "image_encoder.encoder.patch_embed.proj.weight"
    return [Rule(name, ("visual.patch_embed.proj.weight",), alone, on_all)]


def projector(model: Architecture) -> list[Rule]:
    """What stands behind its last."""
    ours, theirs = "image_encoder.projector.", "visual.merger."
    norms = ("weight",) if model.gated_vision else ("weight", "bias")
    rules = [Rule(f"{ours}layernorm.{kind}", (f"{theirs}ln_q.{kind}",), alone, on_all) for kind in norms]
    return [
        *rules,
        Rule(f"{ours}encoder.linear_fc1.weight", (f"{theirs}mlp.0.weight",), alone, by_rows),
        Rule(f"{ours}encoder.linear_fc1.bias", (f"{theirs}mlp.0.bias",), alone, by_rows),
        Rule(f"{ours}encoder.linear_fc2.weight", (f"{theirs}mlp.2.weight",), alone, by_columns),
        Rule(f"{ours}encoder.linear_fc2.bias", (f"{theirs}mlp.2.bias",), alone, on_all),
    ]


def text_head() -> list[Rule]:
    """What stands before the language model's first layer."""
    name = "text_decoder.embedding.word_embeddings.weight"
    return [Rule(name, ("text.embed_tokens.weight",), alone, by_rows)]


def text_tail(source: str | None) -> list[Rule]:
    """What stands behind its last; `source` is what the head is made of, None for no head."""
    rules = [Rule("text_decoder.decoder.final_layernorm.weight", ("text.norm.weight",), alone, on_all)]
    if source is not None:
        rules.append(Rule("text_decoder.output_layer.weight", (source,), alone, by_rows))
    return rules


def _same(name: str) -> Rule:
    return Rule(name, (name,), alone, on_all)
