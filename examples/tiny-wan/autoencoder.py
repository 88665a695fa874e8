"""Train the autoencoder on crops of moving digits.

    python examples/tiny-wan/autoencoder.py runs/tiny-wan --minutes 13
    python examples/tiny-wan/autoencoder.py runs/tiny-wan --minutes 10 --decoder --rate 5e-4

Writes `OUT/vae.safetensors` (the averaged weights) and goes on from `OUT/vae.state.safetensors` when it is there. With
`--decoder` it goes on with the decoder alone: the latents stay what they are, so this may run beside the denoiser's
training.
Convolutions do not care where a thing is, so most steps see 9 frames of 32 x 32 around a digit, seven times less work
than a whole clip; every eighth step sees all 17 frames of a 48 x 48 part, for the edges and the later frames.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from clips import FRAMES, SIZE, draw, scene
from digits import fetch, split
from network import CHANNELS, autoencoder
from safetensors.torch import load_file
from state import average, load_state, save_state
from torch.nn import functional

KL_WEIGHT = 0.005 / (8 * 8 * 4 * 3)  # a latent cell's, against a mean over pixels: a cell has 768 of them


def crop(rng: Random, digits: list[np.ndarray], frames: int, side: int) -> np.ndarray:
    """uint8 [frames, side, side] of a clip, near a digit nine times out of ten."""
    movers = scene(rng)
    clip = draw(movers, digits, rng)
    first = rng.randint(0, FRAMES - frames)
    if rng.random() < 0.9:
        x, y = movers[0].corner(first + frames // 2)
        x, y = x + rng.randint(-16, 8), y + rng.randint(-16, 8)
    else:
        x, y = rng.randint(0, SIZE - side), rng.randint(0, SIZE - side)
    x, y = min(max(x, 0), SIZE - side), min(max(y, 0), SIZE - side)
    return clip[first : first + frames, y : y + side, x : x + side]


def to_video(clips: np.ndarray) -> torch.Tensor:
    """uint8 [B, F, H, W] to float [B, 3, F, H, W] in [-1, 1]."""
    values = torch.from_numpy(clips).float().div(127.5).sub(1)
    return values[:, None].expand(-1, 3, -1, -1, -1).contiguous()


@torch.no_grad()
def start(model: Any) -> None:
    """Initial weights that let it learn in minutes: with PyTorch's own it outputs black for hundreds of steps."""
    for module in model.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            torch.nn.init.zeros_(module.bias)
    for name, weights in model.named_parameters():
        if name.endswith(("conv2.weight", "decoder.conv_out.weight")):
            weights.mul_(0.3)  # residual branches and pixels start small
    model.quant_conv.bias[CHANNELS:] = -6.0  # hardly any noise on the latents


def unclamped(model: Any, latents: torch.Tensor) -> torch.Tensor:
    """What `decode` gives before it clamps to [-1, 1]; behind the clamp, where black is, no gradient comes back."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    chunks: list[torch.Tensor] = []
    hook = model.decoder.register_forward_hook(lambda module, given, output: chunks.append(output))
    try:
        model.decode(latents)
    finally:
        hook.remove()
    return unpatchify(torch.cat(chunks, 2), model.config.patch_size)


def loss_of(model: Any, video: torch.Tensor, strictness: float) -> tuple[torch.Tensor, dict[str, float]]:
    """Squared error, with a share of absolute error and divergence; and parts of it for the log."""
    posterior = model.encode(video).latent_dist
    decoded = unclamped(model, posterior.sample())
    absolute, square = (decoded - video).abs().mean(), functional.mse_loss(decoded, video)
    divergence = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).sum(1).mean()
    loss = square + strictness * (absolute + KL_WEIGHT * divergence)
    error = float(square.detach())
    return loss, {"psnr": 10 * math.log10(4 / error), "kl": float(divergence.detach())}


def beginning(out: Path, decoder: bool, device: str) -> Any:
    """A new model, or the trained one with only its decoder to train."""
    model = autoencoder()
    if decoder:
        model.load_state_dict(load_file(out / "vae.safetensors"))
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    else:
        start(model)
    return model.to(device).train()


def train(out: Path, minutes: float, batch: int, rate: float, seed: int, device: str, decoder: bool) -> None:
    digits = split(fetch(out.parent / "mnist"), "train")
    torch.manual_seed(seed)
    model = beginning(out, decoder, device)
    averaged = autoencoder().to(device).requires_grad_(False)
    averaged.load_state_dict(model.state_dict())
    learning = [weights for weights in model.parameters() if weights.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
    name = "decoder" if decoder else "vae"
    state = out / f"{name}.state.safetensors"
    step, spent = load_state(state, model, averaged, optimizer)
    log, mark, saved = (out / f"{name}.log").open("a"), time.perf_counter(), 0.0
    while spent < 60 * minutes:
        progress = spent / (60 * minutes)
        rng = Random(f"{name} {seed} {step}")
        frames, side, count = (FRAMES, 48, max(1, batch // 4)) if step % 8 == 7 else (9, 32, batch)
        clips = np.stack([crop(rng, digits, frames, side) for _ in range(count)])
        # From the start on, absolute error would settle on all black (most pixels are), and the divergence would shut
        # every channel before one of them says anything.
        strictness = 1.0 if decoder else min(1.0, max(0.0, 5 * progress - 1))
        loss, parts = loss_of(model, to_video(clips).to(device), strictness)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100) * (0.02 + 0.98 * math.cos(progress * math.pi / 2))
        optimizer.step()
        optimizer.zero_grad()
        average(averaged, model, min(0.998, (step + 1) / (step + 10)))
        step += 1
        now = time.perf_counter()
        spent, mark = spent + now - mark, now
        if step % 50 == 0:
            print(
                f"{step} {spent:.0f}s " + " ".join(f"{k} {v:.4f}" for k, v in parts.items()),
                file=log,
                flush=True,
            )
        if spent - saved > 120 or spent >= 60 * minutes:
            save_state(state, out / "vae.safetensors", model, averaged, optimizer, step, spent)
            saved = spent


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=13)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--decoder", action="store_true", help="go on with the decoder alone")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    train(**vars(options))
