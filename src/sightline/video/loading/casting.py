"""The transformer's large weights in 8 bits, cast to the computing dtype layer by layer: half the memory, not exact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sightline.errors import SightlineError

if TYPE_CHECKING:
    import torch


def cast_weights(model: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Keep the weights of a diffusers model as float8_e4m3fn; embeddings and norms stay as they are (diffusers'
    `enable_layerwise_casting`).

    Args:
        dtype: to compute in.
        device: where it will run, which must be able to cast from and to 8 bits.

    Raises:
        SightlineError: the device has no such type.
    """
    import torch

    try:
        sample = torch.ones(2, device=device).to(torch.float8_e4m3fn).to(dtype)
        able = bool((sample == 1).all())
    except (RuntimeError, TypeError, NotImplementedError):
        able = False
    if not able:
        raise SightlineError(
            f"{device} does not cast to float8_e4m3fn, in which cast_weights keeps weights; use offload model or group "
            "to save memory there"
        )
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)
