"""The proof of a quantized folder: it is read back and its answer compared with the float model's on a fixed input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sightline.checkpoints.store import read_config
from sightline.checkpoints.verify import load_plain, logits_of, trial_inputs
from sightline.errors import SightlineError
from sightline.models.families import family_of
from sightline.models.quantization.module import load_quantized


@dataclass(frozen=True)
class Comparison:
    """Next-token distributions of two models at the same positions.

    Attributes:
        divergence: mean Kullback-Leibler divergence from the float model's distribution, in nats.
        agreement: share of positions with the same likeliest token.
    """

    divergence: float
    agreement: float
    positions: int


def verify(model: str | Path, quantized: str | Path) -> Comparison:
    """Run both on sixteen token ids and one small picture, in float32, one after the other.

    Raises:
        SightlineError: the quantized model's answer is not finite, or farther from the model's than an answer
            that knows nothing.
    """
    inputs = trial_inputs(read_config(model))
    expected = logits_of(load_plain(model), inputs)[0]
    kind = family_of(quantized).model_class()
    config = kind.config_class.from_pretrained(str(quantized))
    found = logits_of(load_quantized(kind, config, quantized, dtype=torch.float32), inputs)[0]
    result = compare(expected, found)
    if not result.divergence < compare(expected, torch.zeros_like(expected)).divergence:
        raise SightlineError(
            f"{quantized} answers no more like {model} than chance does (mean KL {result.divergence:.3g}); "
            "use int8, smaller groups, or --skip for the layers that suffer"
        )
    return result


def compare(expected: Any, found: Any) -> Comparison:
    """Logits [positions, V] of the float and the other model."""
    wanted, got = (logits.float().log_softmax(-1) for logits in (expected, found))
    divergence = (wanted.exp() * (wanted - got)).sum(-1).mean()
    agreement = (wanted.argmax(-1) == got.argmax(-1)).float().mean()
    return Comparison(float(divergence), float(agreement), len(wanted))
