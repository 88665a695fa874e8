"""A Wan transformer with random weights that runs in milliseconds, and denoising loops for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

BRANCHES = ("cond", "uncond")
SHAPE = (1, 4, 3, 8, 8)


def make_model(layers: int = 3, seed: int = 0) -> Any:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(seed)
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=layers,
        rope_max_seq_len=32,
    )
    # At its creation a block changes next to nothing; these move things.
    with torch.no_grad():
        for weights in model.parameters():
            weights.add_(0.2 * torch.randn_like(weights))
    return model.eval()


def latents(seed: int = 1) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def prompts() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {branch: torch.randn(1, 5, 16, generator=generator) for branch in BRANCHES}


def timestep(step: int, steps: int) -> torch.Tensor:
    return torch.tensor([1000.0 * (1 - step / steps)])


Clock = Callable[[int, str], AbstractContextManager[Any]]


@torch.no_grad()
def denoise(
    model: Any, steps: int, clock: Clock = lambda step, branch: nullcontext(), guidance: float = 3.0
) -> list[torch.Tensor]:
    """Euler's method with guidance, two calls a step; all latents, the last one being the result."""
    x, texts, found = latents(), prompts(), []
    for step in range(steps):
        velocity = {}
        for branch in BRANCHES:
            with clock(step, branch):
                velocity[branch] = model(x, timestep(step, steps), texts[branch], return_dict=False)[0]
        x = x - (velocity["uncond"] + guidance * (velocity["cond"] - velocity["uncond"])) / steps
        found.append(x)
    return found


@torch.no_grad()
def by_hand(
    model: Any, x: torch.Tensor, time: torch.Tensor, text: torch.Tensor, loop: Callable[..., torch.Tensor]
) -> torch.Tensor:
    """Wan's forward written out, with `loop(hidden_states, *arguments of a block)` in place of its block loop."""
    rotary = model.rope(x)
    hidden = model.patch_embedding(x).flatten(2).transpose(1, 2).contiguous()
    embedding, modulation, text, _ = model.condition_embedder(time, text)
    hidden = loop(hidden, text, modulation.unflatten(1, (6, -1)), rotary)
    shift, scale = (model.scale_shift_table + embedding.unsqueeze(1)).chunk(2, dim=1)
    hidden = model.proj_out(model.norm_out(hidden) * (1 + scale) + shift)
    _, _, frames, height, width = x.shape
    hidden = hidden.reshape(1, frames, height // 2, width // 2, 1, 2, 2, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return hidden.flatten(6, 7).flatten(4, 5).flatten(2, 3)
