"""A model's fingerprint: so that a plan is not used on other weights than those it was found with."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from sightline.errors import SightlineError

if TYPE_CHECKING:
    from torch import nn

_SAMPLES = 1024


def fingerprint(model: nn.Module) -> str:
    """SHA-256 (hex) of names, shapes and up to 1,024 evenly spaced values of every parameter, as float32.

    How the weights are spread over files does not matter, and where they are does not; another precision, a merged
    adapter or a further step of training gives another one. A model of 1.3 billion weights takes well under a second.

    Raises:
        SightlineError: weights that are not loaded.
    """
    import torch

    digest = hashlib.sha256()
    for name, weights in sorted(model.named_parameters()):
        if weights.is_meta:
            raise SightlineError(f"{name} has no values yet; load the model before taking its fingerprint")
        digest.update(f"{name} {tuple(weights.shape)}\n".encode())
        flat = weights.detach().flatten()
        count = min(_SAMPLES, flat.numel())
        chosen = torch.linspace(0, max(flat.numel() - 1, 0), count, dtype=torch.float64).long()
        digest.update(flat[chosen.to(flat.device)].float().cpu().numpy().tobytes())
    return digest.hexdigest()
