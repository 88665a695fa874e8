"""What decoding over ranks sends, worked out beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sightline.video.parallel.layout import shares
from sightline.video.parallel.vae.strip import COLUMNS, ROWS, longer_side


@dataclass(frozen=True)
class Traffic:
    """Bytes that one rank sends in a decoding, besides the shapes of the latents.

    Attributes:
        borders: lines next to a strip, to one neighbour or two.
        attention: the strip that the middle block's attention looks at, to all others.
        pictures: the decoded strip.
        share: the part of the picture that this rank decodes; so is its part of the work, and of the memory for
            activations.
    """

    borders: int
    attention: int
    pictures: int
    share: float

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.borders + self.attention + self.pictures


def traffic(
    vae: Any, shape: Sequence[int], ranks: int, *, itemsize: int = 4, everywhere: bool = True
) -> tuple[Traffic, ...]:
    """What each rank sends when latents are decoded.

    Args:
        vae: an `AutoencoderKLWan`, whose weights are not looked at.
        shape: of the latents, [B, C, F, H, W].
        ranks: how many decode.
        itemsize: bytes of a number of the VAE's dtype.
        everywhere: every rank gets the whole video, else rank 0 alone.
    """
    batch, _, frames, height, width = shape
    axis = longer_side(shape)
    across, length = (width, height) if axis == ROWS else (height, width)
    lines, scale, time = _border(vae.decoder, frames, across)
    middle = vae.decoder.conv_in.out_channels * frames * across * len(vae.decoder.mid_block.attentions)
    pictures = vae.decoder.conv_out.out_channels * (1 + (frames - 1) * time) * across * scale**2
    found = []
    for rank, own in enumerate(shares(length, ranks)):
        takers = ranks - 1 if everywhere else int(rank != 0)
        neighbours = (rank > 0) + (rank < ranks - 1)
        found.append(
            Traffic(
                borders=batch * lines * neighbours * itemsize,
                attention=batch * middle * own * (ranks - 1) * itemsize,
                pictures=batch * pictures * own * takers * itemsize,
                share=own / length,
            )
        )
    return tuple(found)


def _border(decoder: Any, frames: int, across: int) -> tuple[int, int, int]:
    """Numbers that cross one border in one direction, and what the decoder multiplies sides and frames by."""
    import torch
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample

    lines, scale, time = 0, 1, 1
    for module in decoder.modules():
        if isinstance(module, WanResample):
            scale *= 2
            time *= 2 if module.mode == "upsample3d" else 1
        elif isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)) and module.kernel_size[COLUMNS] > 1:
            # The first frame of the latents gives one frame, every other one `time`.
            lines += module.in_channels * (1 + (frames - 1) * time) * across * scale
    return lines, scale, time
