"""Penalties, biases and bans on a batch of logits, in the order of transformers and vLLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sightline.engine.sampling.rules import Rules

LARGEST = 1e30
"""No penalty makes a logit larger, so that none becomes an infinity, which has no softmax."""


@dataclass(frozen=True)
class Change:
    """What one row's rules do to it, copied at one moment of its answer."""

    ids: np.ndarray[Any, Any]
    counts: np.ndarray[Any, Any]
    seen: np.ndarray[Any, Any]
    biases: np.ndarray[Any, Any]
    banned: list[int]
    allowed: np.ndarray[Any, Any] | None
    repetition: float
    presence: float
    frequency: float

    @classmethod
    def of(cls, rules: Rules) -> Change:
        params = rules.params
        return cls(
            ids=rules.ids.copy(),
            counts=rules.counts.copy(),
            seen=rules.seen.copy(),
            biases=rules.biases.copy(),
            banned=rules.banned(),
            allowed=rules.allowed,
            repetition=params.repetition_penalty,
            presence=params.presence_penalty,
            frequency=params.frequency_penalty,
        )


def apply(logits: torch.Tensor, changes: dict[int, Change]) -> None:
    """Change rows of `logits` in place.

    Repetition divides what is above zero and multiplies what is below (Keskar et al. 2019, as transformers does
    it), over prompt and answer; frequency and presence are taken off for tokens of the answer (OpenAI's
    definition); then biases are added; then all but the allowed tokens, and the banned ones, become impossible.

    Args:
        logits: float32 [R, V].
        changes: by row.
    """
    touched = [(row, change) for row, change in changes.items() if len(change.ids)]
    if touched:
        _apply_tables(logits, touched)
    for row, change in changes.items():
        if change.allowed is not None:
            allowed = torch.from_numpy(change.allowed).to(logits.device)
            kept = logits[row, allowed]
            logits[row] = -torch.inf
            logits[row, allowed] = kept
    banned = [(row, token) for row, change in changes.items() for token in change.banned]
    if banned:
        rows, tokens = torch.tensor(banned, device=logits.device).unbind(1)
        logits[rows, tokens] = -torch.inf


def _apply_tables(logits: torch.Tensor, touched: list[tuple[int, Change]]) -> None:
    """All rows' tables as one, so that a device gets a handful of operators whatever the batch."""
    device = logits.device
    lengths = [len(change.ids) for _, change in touched]

    def gathered(arrays: list[Any]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(arrays)).to(device)

    def repeated(values: list[float]) -> torch.Tensor:
        return torch.from_numpy(np.repeat(np.array(values, np.float32), lengths)).to(device)

    rows = torch.from_numpy(np.repeat([row for row, _ in touched], lengths)).to(device)
    ids = gathered([change.ids for _, change in touched])
    counts = gathered([change.counts for _, change in touched])
    held = counts > 0
    repetition = repeated([change.repetition for _, change in touched])
    score = logits[rows, ids]
    penalised = torch.where(score < 0, score * repetition, score / repetition)
    score = torch.where(gathered([change.seen for _, change in touched]) | held, penalised, score)
    score = score - counts * repeated([change.frequency for _, change in touched])
    score = score - held * repeated([change.presence for _, change in touched])
    score = score + gathered([change.biases for _, change in touched])
    # -inf stays: a model may rule a token out itself.
    logits[rows, ids] = score.clamp(max=LARGEST)
