"""The authors' VAE file (`Wan2.1_VAE.pth`): names, and the config of its width.

Names are those of `WanVAE_` in wan/modules/vae.py of Wan-Video/Wan2.1: stages lie in one row there, two residual blocks
and a change of size each in the encoder, three and one in the decoder; diffusers groups the decoder's by stage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from sightline.errors import SightlineError
from sightline.video.loading.names import renamed, swapped
from sightline.video.loading.tensors import Tensors

KIND = "Wan2.1's VAE"
_LATENTS = 16  # channels for which the authors' mean and deviation are known

_OUTSIDE = (
    ("conv1.", "quant_conv."),
    ("conv2.", "post_quant_conv."),
    *(
        line
        for side in ("encoder", "decoder")
        for line in (
            (f"{side}.conv1.", f"{side}.conv_in."),
            (f"{side}.middle.0.", f"{side}.mid_block.resnets.0."),
            (f"{side}.middle.1.", f"{side}.mid_block.attentions.0."),
            (f"{side}.middle.2.", f"{side}.mid_block.resnets.1."),
            (f"{side}.head.0.", f"{side}.norm_out."),
            (f"{side}.head.2.", f"{side}.conv_out."),
        )
    ),
)
_RESIDUAL = (
    ("residual.0.", "norm1."),
    ("residual.2.", "conv1."),
    ("residual.3.", "norm2."),
    ("residual.6.", "conv2."),
    ("shortcut.", "conv_shortcut."),
)
_RESIZING = ("resample.", "time_conv.")
_ROW = re.compile(r"(encoder\.down|decoder\.up)samples\.(\d+)\.(.+)")
_STAGE = 4  # parts of a stage of the decoder: three residual blocks and one that doubles the size


def is_original(names: Iterable[str]) -> bool:
    """Whether the names are the authors', and not diffusers'."""
    return any(name.startswith(("decoder.upsamples.", "decoder.middle.")) for name in names)


def to_diffusers(tensors: Tensors) -> Tensors:
    """The same tensors by diffusers' names.

    Raises:
        SightlineError: a tensor is not of this VAE.
    """
    return renamed(tensors, ((name, _name(name)) for name in tensors.entries), KIND)


def config_of(tensors: Tensors) -> dict[str, Any]:
    """The config by the shapes of its tensors: their width; stages, and the latents' mean and deviation, are those of
    every Wan2.1.

    Args:
        tensors: by diffusers' names.

    Raises:
        SightlineError: it is another VAE (Wan2.2's has 48 channels).
    """
    latents = tensors.shape("post_quant_conv.weight")[0]
    if latents != _LATENTS:
        raise SightlineError(
            f"{tensors.where} has latents of {latents} channels, and {KIND} has {_LATENTS}; for another VAE give a "
            "diffusers folder with its config.json"
        )
    return {"base_dim": tensors.shape("encoder.conv_in.weight")[0], "z_dim": latents}


def _name(name: str) -> str | None:
    match = _ROW.fullmatch(name)
    if match is not None:
        number, rest = int(match[2]), match[3]
        inside = swapped(rest, _RESIDUAL)
        if match[1] == "encoder.down":
            kept = inside or (rest if rest.startswith(_RESIZING) else None)
            return None if kept is None else f"encoder.down_blocks.{number}.{kept}"
        stage, part = divmod(number, _STAGE)
        if inside is not None and part < _STAGE - 1:
            return f"decoder.up_blocks.{stage}.resnets.{part}.{inside}"
        if rest.startswith(_RESIZING) and part == _STAGE - 1:
            return f"decoder.up_blocks.{stage}.upsamplers.0.{rest}"
        return None
    found = swapped(name, _OUTSIDE)
    if found is None or ".resnets." not in found:
        return found
    # A residual block of the middle has the names of the others inside.
    block, _, rest = found.partition(".resnets.")
    inside = swapped(rest[2:], _RESIDUAL)
    return None if inside is None else f"{block}.resnets.{rest[:2]}{inside}"
