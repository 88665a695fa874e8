"""The loss at supervised tokens only, exact under padding and gradient accumulation."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sightline.models.prompt import IGNORED

# Rows of logits held at once: with a vocabulary of 150,000, 1,024 rows in float32 are 0.6 GB.
CHUNK_ROWS = 1024


def token_loss(hidden: torch.Tensor, targets: torch.Tensor, head: nn.Module) -> torch.Tensor:
    """Summed cross-entropy in float32 over the rows whose target is not -100.

    Only these rows meet the language-model head, and in chunks whose logits are worked out again in the backward
    pass, so that the memory does not grow with the number of tokens times the vocabulary.

    Args:
        hidden: [..., H], the last hidden states.
        targets: int64 [...], the token each position must predict.
        head: [N, H] -> [N, vocabulary].
    """
    rows = targets != IGNORED
    states, wanted = hidden[rows], targets[rows]
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    for start in range(0, len(wanted), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        if len(wanted) > CHUNK_ROWS and torch.is_grad_enabled():
            total = total + checkpoint(_chunk_loss, states[part], wanted[part], head, use_reentrant=False)
        else:
            total = total + _chunk_loss(states[part], wanted[part], head)
    return total


def _chunk_loss(states: torch.Tensor, targets: torch.Tensor, head: nn.Module) -> torch.Tensor:
    return nn.functional.cross_entropy(head(states).float(), targets, reduction="sum")


def install_token_loss(model: Any) -> None:
    """Make a Qwen-VL model with head return the loss of `token_loss` from its forward.

    It is the model's own forward that changes, so that wrappers (PEFT, DistributedDataParallel, DeepSpeed) see an
    ordinary call. The loss is divided by `num_items_in_batch`, the supervised tokens of the whole optimizer step
    over all devices; these classes say `accepts_loss_kwargs = False` in transformers 5, and the stock Trainer then
    averages the averages of batches with unequal numbers of tokens.
    """
    model.forward = MethodType(_forward, model)
    model.accepts_loss_kwargs = True


def _forward(
    self: Any,
    shift_labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    **inputs: Any,
) -> dict[str, torch.Tensor]:
    for name in ("labels", "kinds"):
        inputs.pop(name, None)
    hidden = self.model(**inputs, use_cache=False).last_hidden_state
    total = token_loss(hidden, shift_labels, self.lm_head)
    count = num_items_in_batch if num_items_in_batch is not None else (shift_labels != IGNORED).sum()
    return {"loss": total / count}
