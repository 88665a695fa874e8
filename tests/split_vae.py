"""Tiny Wan VAEs, and what one rank of a `rank_pool.Pool` does with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sightline.errors import SightlineError, UsageError
from sightline.video.parallel.vae import split_decoder

SMALL = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "scale_factor_spatial": 4}
SMALL |= {"temperal_downsample": [True, True], "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}


def make_vae(**changes: Any) -> Any:
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    vae = AutoencoderKLWan(**(SMALL | changes)).eval()
    with torch.no_grad():
        for name, weights in vae.named_parameters():
            # As made, biases are next to nothing, attention too: a wrong border or key would not show.
            weights.add_((0.3 if weights.ndim < 3 else 0.05) * torch.randn_like(weights))
            if "to_qkv.weight" in name:
                weights.mul_(3)
    return vae


def latents(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def decode_strip(
    rank: int, group: Any, config: dict[str, Any], shape: tuple[int, ...], everywhere: bool = True
) -> tuple[torch.Tensor, dict[str, int], bool]:
    """What one rank sees: the video, what it sent, and whether `undo` gave the model back."""
    vae = make_vae(**config)
    before = vae.decode(latents(1, 4, 2, 4, 4)).sample
    paddings = [getattr(module, "padding", None) for module in vae.modules()]
    split = split_decoder(vae, group, rank, group.size(), everywhere=everywhere)
    z = latents(*shape)
    sample = vae.decode(z).sample
    again = vae.decode(z, return_dict=False)[0]  # nothing is left of the first
    sent = split.sent
    split.undo()
    same = torch.equal(before, vae.decode(latents(1, 4, 2, 4, 4)).sample) and torch.equal(sample, again)
    same &= paddings == [getattr(module, "padding", None) for module in vae.modules()]
    return sample, sent, same and "forward" not in vae.decoder.conv_in.__dict__


def refused(rank: int, group: Any, case: str) -> str:
    vae = make_vae()
    z = latents(1, 4, 2, 2, 3)
    if case == "shapes" and rank == 1:
        z = latents(1, 4, 2, 2, 4)
    with pytest.raises((SightlineError, UsageError)) as caught:
        split = split_decoder(vae, group, rank, group.size())
        if case == "inside":
            vae.decoder(z)
        if case == "tiles later":
            vae.enable_tiling()
        if case == "foreign":
            vae.decoder.conv_in.forward = vae.decoder.conv_in.forward.__get__
            split.undo()
        if case == "twice":
            split_decoder(vae, group, rank, group.size())
        vae.decode(z)
    return str(caught.value)


def pipeline_frames(
    rank: int, group: Any, folder: str, size: tuple[int, int], parallel: bool = True
) -> tuple[torch.Tensor, bool]:
    """What a pipeline decodes, and whether each rank decoded a strip."""
    pipeline = _pipeline(rank, group, folder, parallel)
    strips = []
    decoder = pipeline.components.vae.decoder
    hook = decoder.register_forward_pre_hook(lambda _, inputs: strips.append(inputs[0].shape[-1]))
    request = pipeline.request("a", width=size[0], height=size[1], frames=5)
    frames = pipeline.decode(pipeline.noise(request))
    hook.remove()
    return frames, max(strips) < size[0] // pipeline.components.vae.config.scale_factor_spatial


def pipeline_refused(rank: int, group: Any, folder: str, size: tuple[int, int]) -> str:
    """How it says before any work that a video is too small."""
    with pytest.raises(UsageError) as caught:
        _pipeline(rank, group, folder, True).generate("a", width=size[0], height=size[1], frames=1)
    return str(caught.value)


def _pipeline(rank: int, group: Any, folder: str, parallel: bool) -> Any:
    from sightline.video.parallel.layout import Layout
    from sightline.video.pipeline import VideoPipeline

    # Only decoding is spread: the model has fewer heads than there may be ranks.
    layout = Layout(rank=rank, world=group.size(), everyone=group)
    return VideoPipeline.load(folder, device="cpu", layout=layout, vae_parallel=parallel)
