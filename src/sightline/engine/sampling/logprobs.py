"""Log-probabilities of chosen tokens and of the most likely ones, from the model's own distribution.

They are taken before temperature, penalties and bans, as vLLM does by default.
"""

from __future__ import annotations

import torch

from sightline.engine.outputs import Logprob

_ROWS_ON_DEVICE = 64  # rows in float32 at a time; on a CPU one, which stays in the core's cache


def describe(logits: torch.Tensor, tokens: list[int], count: int) -> list[dict[int, Logprob]]:
    """Each row's token and its `count` most likely ones (-1: all), the token first and the others by rank.

    Args:
        logits: float [R, V], on any device; not changed.
        tokens: R ids.
    """
    found: list[dict[int, Logprob]] = []
    size = 1 if logits.device.type == "cpu" else _ROWS_ON_DEVICE
    for start in range(0, len(tokens), size):
        found += _described(logits[start : start + size].float(), tokens[start : start + size], count)
    return found


def prompt_logprobs(logits: torch.Tensor, next_tokens: list[int], count: int) -> list[dict[int, Logprob]]:
    """Log-probabilities of a prompt's tokens, row by row.

    Args:
        logits: float [R, V] of R neighbouring tokens of the prompt.
        next_tokens: R ids: the token that follows each of them. The first token of a prompt follows none: its
            entry in `RequestOutput.prompt_logprobs` is None.
        count: `SamplingParams.prompt_logprobs`.
    """
    return describe(logits, next_tokens, count)


def _described(logits: torch.Tensor, tokens: list[int], count: int) -> list[dict[int, Logprob]]:
    chosen = torch.tensor(tokens, device=logits.device)[:, None]
    # Step by step: logsumexp of one long row takes ten times as long on a CPU.
    peak = logits.amax(-1, keepdim=True)
    total = peak + (logits - peak).exp_().sum(-1, keepdim=True).log()
    own = logits.gather(1, chosen)
    ranks = 1 + (logits > own).count_nonzero(-1)
    size = logits.shape[1] if count < 0 else min(count, logits.shape[1])
    values, ids = logits.topk(size, dim=-1)
    lists = zip(
        tokens,
        (own - total)[:, 0].tolist(),
        ranks.tolist(),
        ids.tolist(),
        (values - total).tolist(),
        strict=True,
    )
    return [_entry(token, own, rank, best, values) for token, own, rank, best, values in lists]


def _entry(token: int, own: float, rank: int, best: list[int], values: list[float]) -> dict[int, Logprob]:
    entry = {token: Logprob(own, rank)}
    for place, (other, value) in enumerate(zip(best, values, strict=True), start=1):
        if other != token:
            entry[other] = Logprob(value, place)
    return entry
