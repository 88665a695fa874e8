"""Exact rewrites of a transformers model: the same numbers, up to rounding, by cheaper operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class LinearPatchEmbed(nn.Module):
    """A patch embedding whose convolution steps by its own kernel size, computed as one matrix product.

    Each patch meets the kernel exactly once, so the convolution *is* a linear map of the flattened patch. Conv3d is
    slow in several torch releases and missing on some NPUs. Parameter names and shapes stay those of the checkpoint.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        proj = original.proj
        if not isinstance(proj, nn.Conv3d) or proj.stride != proj.kernel_size or any(proj.padding):
            raise TypeError("only a Conv3d that steps by its kernel size, without padding, is a linear map")
        self.proj = proj

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[patches, channels * time * height * width] -> [patches, embed_dim]"""
        weight = self.proj.weight.flatten(1)
        patches = hidden_states.view(-1, weight.shape[1]).to(weight.dtype)
        return nn.functional.linear(patches, weight, self.proj.bias)


def apply_rewrites(model: Any) -> None:
    """Rewrite a Qwen-VL model with language-model head in place."""
    visual: Any = model.model.visual
    if not isinstance(visual.patch_embed, LinearPatchEmbed):
        visual.patch_embed = LinearPatchEmbed(visual.patch_embed)
