"""Small films: a disc that moves over a ramp, and the same with noise."""

from __future__ import annotations

import torch


def film(noise: float = 0.0, frames: int = 5, side: int = 32, seed: int = 0) -> torch.Tensor:
    """[F, 3, H, W] in [0, 1]; the noise grows from frame to frame, from none in the first."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    pictures = []
    for frame in range(frames):
        away = ((x - 0.2 - 0.6 * frame / frames) ** 2 + (y - 0.5) ** 2).sqrt()
        disc = 1 - (8 * away - 1).clamp(0, 1)
        picture = torch.stack([0.2 + 0.6 * disc, 0.2 + 0.5 * disc, 0.3 + 0.4 * y])
        share = noise * frame / max(1, frames - 1)
        pictures.append(picture + share * torch.randn(picture.shape, generator=generator))
    return torch.stack(pictures).clamp(0, 1)
