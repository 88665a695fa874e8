"""The vision tower's blocks with fewer and cheaper operations: the same numbers up to rounding.

On a CPU a third of the tower's time is not matrix products: queries and keys are turned in float32, copied and
concatenated, and the activation runs over its input three times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from sightline.models.attention import segment_attention
from sightline.models.fast.linear import Convert, converted, join

_QUICK = 1.702  # of QuickGELU: x * sigmoid(1.702 x)


class VisionAttention(nn.Module):
    """In place of a tower's attention; `qkv` and `proj` are the original's."""

    def __init__(self, original: Any, convert: Convert) -> None:
        super().__init__()
        self.num_heads = int(original.num_heads)
        self.scaling = float(original.scaling)
        self.is_causal = False
        self.qkv = converted(original.qkv, convert)
        self.proj = converted(original.proj, convert)

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **kwargs: Any,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: [T, H]; position_embeddings: cosines and sines [T, D].
            cu_seqlens: where each image or window begins, and T.

        Returns:
            [T, H]
        """
        tokens = len(hidden_states)
        query_key_value = self.qkv(hidden_states).view(tokens, 3, self.num_heads, -1).permute(1, 2, 0, 3)
        query, key = _turned(query_key_value[:2], *position_embeddings)
        value = query_key_value[2].contiguous()
        mixed, _ = segment_attention(
            self, query[None], key[None], value[None], None, cu_seqlens, scaling=self.scaling
        )
        return self.proj(mixed.reshape(tokens, -1))


class VisionMlp(nn.Module):
    """In place of a tower's two-layer perceptron; QuickGELU runs in place."""

    def __init__(self, first: nn.Module, activation: nn.Module, second: nn.Module, convert: Convert) -> None:
        super().__init__()
        self._quick = type(activation).__name__ == "QuickGELUActivation"
        self.first = converted(first, convert)
        self.activation = activation
        self.second = converted(second, convert)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """[T, H] -> [T, H]"""
        inside = self.first(rows)
        if self._quick:
            inside = functional.silu(inside.mul_(_QUICK), inplace=True).mul_(1 / _QUICK)
        else:
            inside = self.activation(inside)
        return self.second(inside)


class GatedVisionMlp(nn.Module):
    """In place of Qwen2.5-VL's gated perceptron."""

    def __init__(self, original: Any, convert: Convert) -> None:
        super().__init__()
        self.width = int(original.gate_proj.out_features)
        self.gate_up = converted(join([original.gate_proj, original.up_proj]), convert)
        self.activation = original.act_fn
        self.down = converted(original.down_proj, convert)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """[T, H] -> [T, H]"""
        both = self.gate_up(rows)
        return self.down(self.activation(both[:, : self.width]).mul_(both[:, self.width :]))


def rewrite_tower(visual: Any, convert: Convert) -> None:
    """Rewrite a vision tower's blocks in place, and convert every linear map of the rest.

    What is rewritten already (shared with another tower) stays as it is.
    """
    for block in visual.blocks:
        block.attn = VisionAttention(block.attn, convert)
        block.mlp = _perceptron(block.mlp, convert)
    for module in visual.modules():
        for name, child in list(module.named_children()):
            setattr(module, name, converted(child, convert))


def _perceptron(mlp: Any, convert: Convert) -> nn.Module:
    if isinstance(mlp, (VisionMlp, GatedVisionMlp)):
        return mlp
    if hasattr(mlp, "gate_proj"):
        return GatedVisionMlp(mlp, convert)
    if hasattr(mlp, "linear_fc1"):
        return VisionMlp(mlp.linear_fc1, mlp.act_fn, mlp.linear_fc2, convert)
    return VisionMlp(mlp.fc1, mlp.act, mlp.fc2, convert)


def _turned(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions of [2, heads, T, D] views, written as such a tensor: halves are not joined first."""
    half = cos.shape[-1] // 2
    first, second = heads[..., :half], heads[..., half:]
    cos_first, cos_second = (part.to(heads.dtype) for part in (cos[:, :half], cos[:, half:]))
    sin_first, sin_second = (part.to(heads.dtype) for part in (sin[:, :half], sin[:, half:]))
    turned = torch.empty(heads.shape, dtype=heads.dtype, device=heads.device)
    torch.mul(first, cos_first, out=turned[..., :half]).addcmul_(second, sin_first, value=-1)
    torch.mul(second, cos_second, out=turned[..., half:]).addcmul_(first, sin_second)
    return turned
