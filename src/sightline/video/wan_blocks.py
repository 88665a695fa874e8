"""Wan's blocks on the operators of `sightline.hardware.operators`, in diffusers' model and without a copy of it.

What is computed is diffusers' own, in its arithmetic: the norms and the modulation in float32, the rest in the dtype of
the weights. Linear maps are called as modules, so that offloading, casting, LoRA and fused projections go on working.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from diffusers.models import activations, normalization
from diffusers.models.transformers import transformer_wan
from torch import nn

from sightline.errors import SightlineError, UsageError
from sightline.hardware.operators.activations import activation
from sightline.hardware.operators.dense_attention import attention_forward
from sightline.hardware.operators.forms import kind_of
from sightline.hardware.operators.norms import rms_norm
from sightline.video.wan_parts import gated, modulated, normed, rotated

Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

#: "manual" needs a kernel's name for each shape, so it is not here: give `WanAttention` an `attend` for that.
MODES = ("runtime", "static")


class WanAttention:
    """diffusers' attention processor for Wan, by our operators.

    Attributes:
        attend: attention itself, q [B, Sq, N, D], k and v [B, Sk, N, D] -> [B, Sq, N, D]. What spreads the tokens
            over ranks replaces it.
    """

    def __init__(self, attend: Attend | None = None, *, opt_mode: str = "runtime") -> None:
        """
        Args:
            attend: `attention_forward` without it, with this `opt_mode` ("runtime" or "static").
        """
        if opt_mode not in MODES:
            raise UsageError(f"opt_mode {opt_mode!r} of Wan's attention is not one of {', '.join(MODES)}")
        self.attend = attend or functools.partial(attention_forward, opt_mode=opt_mode)

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """hidden_states [B, S, D]; encoder_hidden_states [B, L, D] for cross-attention; rotary_emb cos and sin
        [1, S, 1, D / N] -> [B, S, D].

        Raises:
            UsageError: there is a mask, which Wan never has.
        """
        if attention_mask is not None:
            raise UsageError("Wan's attention takes no attention_mask; leave it out, or undo use_operators")
        query, key, value = _projected(attn, hidden_states, encoder_hidden_states)
        query = attn.norm_q(query).unflatten(2, (attn.heads, -1))
        key = attn.norm_k(key).unflatten(2, (attn.heads, -1))
        value = value.unflatten(2, (attn.heads, -1))
        if rotary_emb is not None:
            query, key = rotated(query, *rotary_emb), rotated(key, *rotary_emb)
        mixed = self.attend(query, key, value).flatten(2, 3)
        for layer in attn.to_out:
            mixed = layer(mixed)
        return mixed


def _projected(
    attn: Any, hidden_states: torch.Tensor, seen: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values [B, S, D], by one product where `fuse_projections` made one of them."""
    seen = hidden_states if seen is None else seen
    if not getattr(attn, "fused_projections", False):
        return attn.to_q(hidden_states), attn.to_k(seen), attn.to_v(seen)
    if attn.is_cross_attention:
        key, value = attn.to_kv(seen).chunk(2, dim=-1)
        return attn.to_q(hidden_states), key, value
    query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
    return query, key, value


# The classes below have the names of those they stand in for: diffusers finds the blocks to compile, and those
# not to split over devices, by the name of their class.


class WanTransformerBlock(transformer_wan.WanTransformerBlock):
    """diffusers' block with norm and modulation, and gate and residual, in one operator each."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        temb: torch.Tensor,
        rotary_emb: Any,
    ) -> torch.Tensor:
        """hidden_states [B, S, D]; encoder_hidden_states [B, L, D]; temb [B, 6, D], or [B, S, 6, D] with a time for
        each token -> [B, S, D]."""
        table = (self.scale_shift_table + temb.float()).unbind(-2)
        rows = table if temb.dim() == 4 else [row[:, None] for row in table]
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = rows
        inside = modulated(self.norm1, hidden_states, scale, shift)
        hidden_states = gated(hidden_states, self.attn1(inside, None, None, rotary_emb), gate)
        inside = self.norm2(hidden_states)
        hidden_states = hidden_states + self.attn2(inside, encoder_hidden_states, None, None)
        inside = modulated(self.norm3, hidden_states, ffn_scale, ffn_shift)
        return gated(hidden_states, self.ffn(inside), ffn_gate)


class FP32LayerNorm(normalization.FP32LayerNorm):
    """The norm before cross-attention, from the dtype of the tokens to the same."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]"""
        return normed(self, inputs)


class RMSNorm(nn.RMSNorm):
    """The norm of queries and keys, over all heads."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, S, D] -> [B, S, D]"""
        if kind_of(x) == "cpu":
            return super().forward(x)  # torch's kernel, as fast as the operator
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        return rms_norm(x, self.weight, eps)


class GELU(activations.GELU):
    """The feed-forward's first half."""

    def gelu(self, gate: torch.Tensor) -> torch.Tensor:
        """Any shape -> the same shape."""
        return activation(gate, "gelu-tanh" if self.approximate == "tanh" else "gelu")


_STANDS_IN = {each.__mro__[1]: each for each in (WanTransformerBlock, FP32LayerNorm, RMSNorm, GELU)}


class Operators:
    """Our operators in a transformer, until `undo()`."""

    def __init__(self, transformer: Any, opt_mode: str) -> None:
        self._swapped: list[Any] = []
        self._processors: list[tuple[Any, Any, WanAttention]] = []
        for block in transformer.blocks:
            for part in _parts(block):
                _become(part, _STANDS_IN[type(part)])
                self._swapped.append(part)
            for attn in (block.attn1, block.attn2):
                # Attention to a picture's tokens besides the text's (image-to-video) stays with diffusers.
                if attn.add_k_proj is None:
                    ours = WanAttention(opt_mode=opt_mode)
                    self._processors.append((attn, attn.processor, ours))
                    attn.set_processor(ours)

    def undo(self) -> None:
        """Give the model back as it was. A second time does nothing.

        Raises:
            SightlineError: another attention processor was set meanwhile; it has to go first.
        """
        if any(attn.processor is not ours for attn, _, ours in self._processors):
            raise SightlineError(
                "an attention processor was set after use_operators; take that away before the operators"
            )
        for attn, theirs, _ in self._processors:
            attn.set_processor(theirs)
        for part in self._swapped:
            _become(part, type(part).__mro__[1])
        self._swapped.clear()
        self._processors.clear()


def use_operators(transformer: Any, *, opt_mode: str = "runtime") -> Operators:
    """Let diffusers' Wan transformer compute its blocks by our operators.

    Before or after offloading and casting hooks, `compile_repeated_blocks`, `fuse_projections` and a step cache.

    Args:
        transformer: a `WanTransformer3DModel` with diffusers' own attention processors.
        opt_mode: "runtime" measures the attention kernels at the first call of each shape, "static" takes the usual
            one of the device (`attention_forward`).

    Returns:
        What takes them away again: `.undo()`.

    Raises:
        SightlineError: the model is no Wan transformer of diffusers, has the operators, or was changed by others.
        UsageError: the mode is unknown.
    """
    if opt_mode not in MODES:
        raise UsageError(f"opt_mode {opt_mode!r} of use_operators is not one of {', '.join(MODES)}")
    _check(transformer)
    return Operators(transformer, opt_mode)


def _check(transformer: Any) -> None:
    blocks = getattr(transformer, "blocks", ())
    if any(isinstance(block, WanTransformerBlock) for block in blocks):
        raise SightlineError(
            "the transformer computes by our operators already; undo() the first use of them"
        )
    if not blocks or any(type(block) is not transformer_wan.WanTransformerBlock for block in blocks):
        raise SightlineError(
            f"a {type(transformer).__name__} does not consist of diffusers' Wan blocks; give a WanTransformer3DModel"
        )
    if getattr(transformer, "_parallel_config", None) is not None:
        raise SightlineError(
            "diffusers' enable_parallelism changed the attention, which our operators would undo; use --ulysses-size"
        )
    for block in blocks:
        for attn in (block.attn1, block.attn2):
            if type(attn.processor) is not transformer_wan.WanAttnProcessor:
                raise SightlineError(
                    f"{type(attn.processor).__name__} is in the place of Wan's attention processor; set it after "
                    f"use_operators"
                )
        for part in _parts(block):
            _innermost(part)  # raises before anything is changed


def _parts(block: Any) -> list[Any]:
    """The modules of a block that become others, the block itself first."""
    parts = [block, block.norm2, block.attn1.norm_q, block.attn1.norm_k]
    parts += [block.attn2.norm_q, block.attn2.norm_k, block.ffn.net[0]]
    return [
        part for part in parts if type(part) in _STANDS_IN or isinstance(part, tuple(_STANDS_IN.values()))
    ]


def _become(module: Any, kind: type) -> None:
    """Let a module be of another class, for those too who hold its forward: hooks and step caches."""
    owner, name = _innermost(module)
    module.__class__ = kind
    if owner is not module or name in module.__dict__:
        setattr(owner, name, MethodType(kind.forward, module))  # type: ignore[attr-defined]


def _innermost(module: Any) -> tuple[Any, str]:
    """Who holds the forward of the module's class, and as which attribute, below everything that wraps it."""
    owner, name = module, "forward"
    while not _is_own(module, getattr(owner, name)):
        owner, name = _below(module, getattr(owner, name))
    return owner, name


def _is_own(module: Any, forward: Any) -> bool:
    return isinstance(forward, MethodType) and forward.__self__ is module


def _below(module: Any, forward: Any) -> tuple[Any, str]:
    """Where a wrapper holds what it wraps: diffusers' hooks, accelerate's, and functions in the manner of ours."""
    function = getattr(forward, "func", forward)  # of a functools.partial
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    cells = dict(zip(names, getattr(function, "__closure__", None) or (), strict=True))
    if "function_reference" in cells:
        reference = cells["function_reference"].cell_contents
        return reference, "forward" if reference.original_forward is None else "original_forward"
    if getattr(module, "_hf_hook", None) is not None and hasattr(module, "_old_forward"):
        return module, "_old_forward"
    if "forward" in cells:
        return cells["forward"], "cell_contents"
    raise SightlineError(
        f"the forward of a {type(module).__name__} was replaced by what use_operators does not know; replace it "
        f"after use_operators"
    )
