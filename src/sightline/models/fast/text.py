"""The language model's layers with as few operations as they can be written in.

The module of transformers takes several milliseconds of Python for each step, and multiplies queries, keys, values,
gate and up one by one. Here each layer is four matrix products and what stands between them. The weights are the
module's; tests hold the numbers to `TransformersText`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from sightline.errors import SightlineError
from sightline.hardware.operators.attention.paged import PagedAttention, Plan
from sightline.models.adapters.changes import Changes, Stacks
from sightline.models.adapters.low_rank import Group, Pair, side_by_side
from sightline.models.fast.linear import Convert, converted, direct, join
from sightline.models.text import Deepstack

# Results beyond this are not kept by the host's allocator, and their pages cost more than the product.
_MOST_BYTES = 24 << 20


class Norm:
    """RMSNorm over the last dimension, in the arithmetic of transformers: float32, rounded, times the weight."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        self.weight = weight.detach()
        self._share = 1.0 / weight.shape[-1]
        self._eps = torch.tensor(eps, device=weight.device)

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """[..., H] -> [..., H]"""
        wide = rows.float() if rows.dtype != torch.float32 else rows.clone()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = torch.addcmul(self._eps, length, length, value=self._share).rsqrt_()
        return wide.mul_(scale).to(rows.dtype).mul_(self.weight)


class Rotary:
    """What turns queries and keys in a step: the module's cosines and sines, ready for `turn`."""

    def __init__(self, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """cos, sin: [T, D], as transformers applies them to x and to (-second half, first half)."""
        self._half = cos.shape[-1] // 2
        self._cos = cos[:, None]
        self._sin = torch.cat([-sin[:, : self._half], sin[:, self._half :]], dim=-1)[:, None]

    def turn(self, heads: torch.Tensor) -> torch.Tensor:
        """[T, heads, D] -> [T, heads, D]"""
        return torch.addcmul(heads * self._cos, heads.roll(self._half, -1), self._sin)


class Layer:
    """One decoder layer; takes the module's weights over."""

    def __init__(self, layer: Any, index: int, head_dim: int, convert: Convert) -> None:
        inner, mlp = layer.self_attn, layer.mlp
        self._index = index
        self._head_dim = head_dim
        self._scale = float(inner.scaling)
        self._queries = _width(inner.q_proj) // head_dim
        self._turned = self._queries + _width(inner.k_proj) // head_dim
        self._before = Norm(layer.input_layernorm.weight, _eps(layer.input_layernorm))
        self._between = Norm(layer.post_attention_layernorm.weight, _eps(layer.post_attention_layernorm))
        self._head_norm = _head_norm(inner, self._queries, self._turned)
        self._qkv = direct(converted(join([inner.q_proj, inner.k_proj, inner.v_proj]), convert))
        self._out = direct(converted(inner.o_proj, convert))
        self._activation = functional.silu if isinstance(mlp.act_fn, _SILU) else mlp.act_fn
        self._inside = _width(mlp.gate_proj)
        self._widths = {
            name: _width(linear)
            for parent in (inner, mlp)
            for name, linear in parent.named_children()
            if name.endswith("_proj")
        }
        self._gate_up = direct(converted(join([mlp.gate_proj, mlp.up_proj]), convert))
        self._down = direct(converted(mlp.down_proj, convert))

    def __call__(
        self,
        hidden: torch.Tensor,
        rotary: Rotary,
        attention: PagedAttention,
        plan: Plan,
        changes: Changes | None = None,
    ) -> torch.Tensor:
        """[T, H], written over."""
        normed = self._before(hidden)
        joined = self._qkv(normed)
        if changes is not None:
            changes.add(self._index, "qkv", normed, joined)
        heads = joined.view(len(hidden), -1, self._head_dim)
        turned = heads[:, : self._turned]
        if self._head_norm is not None:
            turned = self._head_norm(turned)
        turned = rotary.turn(turned)
        mixed = attention.attend(
            self._index,
            turned[:, : self._queries],
            turned[:, self._queries :],
            heads[:, self._turned :],
            plan,
            self._scale,
        )
        mixed = mixed.reshape(len(hidden), -1)
        out = self._out(mixed)
        if changes is not None:
            changes.add(self._index, "out", mixed, out)
        hidden += out
        rows = max(1, _MOST_BYTES // (2 * self._inside * hidden.element_size()))
        if len(hidden) <= rows:
            hidden += self._feed(self._between(hidden), changes)
            return hidden
        for start, part in zip(range(0, len(hidden), rows), hidden.split(rows), strict=True):
            part += self._feed(self._between(part), changes and changes.within(start, start + rows))
        return hidden

    def _feed(self, rows: torch.Tensor, changes: Changes | None) -> torch.Tensor:
        both = self._gate_up(rows)
        if changes is not None:
            changes.add(self._index, "gate_up", rows, both)
        inside = self._activation(both[:, : self._inside]).mul_(both[:, self._inside :])
        output = self._down(inside)
        if changes is not None:
            changes.add(self._index, "down", inside, output)
        return output

    def join(self, pairs: Mapping[str, Pair]) -> dict[str, Pair]:
        """An adapter's changes of this layer's linear maps as changes of the joined ones."""

        def beside(*names: str) -> Pair | None:
            return side_by_side([(pairs.get(name), self._widths[name]) for name in names])

        found = {
            "qkv": beside("q_proj", "k_proj", "v_proj"),
            "out": pairs.get("o_proj"),
            "gate_up": beside("gate_proj", "up_proj"),
            "down": pairs.get("down_proj"),
        }
        return {name: pair for name, pair in found.items() if pair is not None}


class FastText:
    """The language model as layers of the above; see `sightline.models.text.Text`.

    The module's layers are empty afterwards: their weights live here.
    """

    def __init__(self, language_model: Any, attention: PagedAttention, convert: Convert) -> None:
        config = language_model.config
        head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        self._attention = attention
        self._layers: list[Layer] = []
        while len(language_model.layers):
            # One at a time, so that a layer's old weights are gone before the next one's new ones come.
            layer = language_model.layers.pop(0)
            self._layers.append(Layer(layer, len(self._layers), head_dim, convert))
        self._norm = Norm(language_model.norm.weight, _eps(language_model.norm))
        self._rotary = language_model.rotary_emb
        self._stacks = Stacks()

    def __call__(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        plan: Plan,
        deepstack: Deepstack | None = None,
        groups: Sequence[Group] = (),
    ) -> torch.Tensor:
        cos, sin = self._rotary(embeds, positions[:, None])
        rotary = Rotary(cos[0], sin[0])
        levels = deepstack.levels if deepstack is not None else ()
        changes = self._stacks.changes(groups, len(embeds)) if groups else None
        hidden = embeds
        for index, layer in enumerate(self._layers):
            hidden = layer(hidden, rotary, self._attention, plan, changes)
            if deepstack is not None and index < len(levels):
                hidden.index_add_(0, deepstack.rows, levels[index])
        return self._norm(hidden)

    def join(self, layer: int, pairs: Mapping[str, Pair]) -> Mapping[str, Pair]:
        """See `sightline.models.text.Text`."""
        return self._layers[layer].join(pairs)


def can_rewrite(language_model: Any) -> bool:
    """Whether every layer is of the kind that `Layer` knows.

    Raises:
        SightlineError: it has no layers (any more).
    """
    if not len(language_model.layers):
        raise SightlineError(
            "the model's layers were taken over by another engine; load it again for this one"
        )
    wanted = ("q_proj", "k_proj", "v_proj", "o_proj", "scaling")
    return all(
        all(hasattr(layer.self_attn, name) for name in wanted)
        and all(hasattr(layer.mlp, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn"))
        and getattr(layer.self_attn, "sliding_window", None) is None
        for layer in language_model.layers
    )


def _head_norm(inner: Any, queries: int, turned: int) -> Norm | None:
    """Qwen3-VL normalises each query and key head, with a weight for all of a kind."""
    if not hasattr(inner, "q_norm"):
        return None
    rows = [inner.q_norm.weight.detach()] * queries + [inner.k_norm.weight.detach()] * (turned - queries)
    return Norm(torch.stack(rows), _eps(inner.q_norm))


def _eps(norm: Any) -> float:
    return float(norm.variance_epsilon)


def _width(linear: Any) -> int:
    return int(linear.out_features)


def _silu_types() -> tuple[type, ...]:
    from transformers.activations import ACT2FN

    return (nn.SiLU, type(ACT2FN["silu"]))


_SILU = _silu_types()
