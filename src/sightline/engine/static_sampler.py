"""The one-row sampler of the static batches; goes with them."""

from __future__ import annotations

from collections.abc import Collection

import torch

from sightline.engine.sampling import SamplingParams
from sightline.errors import SightlineError

_LEAST_TEMPERATURE = 0.01  # below, float32 logits overflow; vLLM clamps at the same value
_LARGEST = 1e30


def choose(
    logits: torch.Tensor,
    params: SamplingParams,
    *,
    seen: torch.Tensor | None,
    banned: Collection[int],
    generator: torch.Generator,
) -> int:
    """The next token.

    Args:
        logits: float [vocabulary], on any device; not changed.
        seen: int64 [tokens] of prompt and answer so far, for the repetition penalty.
        banned: tokens that may not come now (the end tokens before `min_tokens`).
        generator: a CPU generator; used once a call unless the choice is greedy.

    Raises:
        SightlineError: the logits are nan.
    """
    if bool(logits.isnan().any()):
        # The largest of them would be the first nan: an answer of one token, over and over.
        raise SightlineError(
            f"the model computes nan in {str(logits.dtype).removeprefix('torch.')}: its numbers do not fit, or "
            "its weights are damaged; use dtype bf16 or fp32"
        )
    logits = logits.float()
    if params.repetition_penalty != 1.0 and seen is not None:
        logits = _penalised(logits, seen.to(logits.device), params.repetition_penalty)
    if banned:
        logits = logits.index_fill(0, torch.tensor(sorted(banned), device=logits.device), -torch.inf)
    if params.greedy:
        return int(logits.argmax())
    # Bounded, so that no penalty or temperature makes an infinity, which has no softmax.
    bounded = logits.cpu().clamp(-_LARGEST, _LARGEST)
    return _sampled(bounded / max(params.temperature, _LEAST_TEMPERATURE), params, generator)


def _penalised(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Divide what is above zero and multiply what is below (Keskar et al. 2019, as transformers does it)."""
    score = logits[seen]
    return logits.index_put((seen,), torch.where(score < 0, score * penalty, score / penalty))


def _sampled(logits: torch.Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    ordered, tokens = logits.sort(descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    keep = torch.ones_like(probabilities, dtype=torch.bool)
    if params.top_k > 0:
        keep[params.top_k :] = False
        probabilities = torch.where(keep, ordered, -torch.inf).softmax(-1)
    if params.top_p < 1:
        # The smallest set that reaches top_p: a token stays if those before it do not reach it.
        keep &= probabilities.cumsum(-1) - probabilities < params.top_p
    if params.min_p > 0:
        keep &= probabilities >= params.min_p * probabilities[0]
    keep[0] = True
    weights = torch.where(keep, probabilities, 0.0)
    return int(tokens[torch.multinomial(weights, 1, generator=generator)])
