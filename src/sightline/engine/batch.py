"""Static batching: some requests start together, and the batch shrinks as they end.

Prompts are padded on the left so that every row's next token stands in the last column; padding is masked
out, and each token keeps the M-RoPE position that it has alone. In float32 a row's answer is the one that
`transformers.generate` gives it by itself. Continuous batching will take the place of this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from sightline.engine.static_request import Request


def run(module: Any, requests: Sequence[Request], *, device: torch.device) -> Iterator[None]:
    """Answer `requests` together, one step of all of them an iteration; each collects its own tokens.

    Args:
        module: a transformers Qwen-VL model with language-model head, in evaluation mode.
    """
    running = list(requests)
    with torch.inference_mode():
        inputs = _prefill_inputs(running, device)
        mask = inputs["attention_mask"]
        output = module(**inputs, use_cache=True, logits_to_keep=1)
    while True:
        _take(running, output.logits[:, -1])
        yield
        cache = output.past_key_values
        staying = [row for row, request in enumerate(running) if not request.finished]
        if not staying:
            return
        with torch.inference_mode():
            if len(staying) < len(running):
                rows = torch.tensor(staying, device=device)
                cache.batch_select_indices(rows)
                mask, running = mask[rows], [running[row] for row in staying]
            mask = torch.nn.functional.pad(mask, (0, 1), value=1)
            output = module(
                input_ids=torch.tensor(
                    [[request.output.token_ids[-1]] for request in running], device=device
                ),
                attention_mask=mask,
                position_ids=_next_positions(running, device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )


def _take(running: list[Request], logits: torch.Tensor) -> None:
    for request, row in zip(running, logits, strict=True):
        request.take(row)


def _next_positions(running: list[Request], device: torch.device) -> torch.Tensor:
    """int64 [3, rows, 1]"""
    positions = torch.tensor([[request.next_position] for request in running], device=device)
    return positions.expand(3, -1, -1)


def _prefill_inputs(requests: list[Request], device: torch.device) -> dict[str, torch.Tensor]:
    """What the model's forward takes: ids and mask [rows, T], positions [3, rows, T], media in row order."""
    length = max(request.prompt_length for request in requests)
    # Padding is masked out, so any id serves.
    ids = torch.zeros(len(requests), length, dtype=torch.long)
    mask = torch.zeros(len(requests), length, dtype=torch.long)
    positions = torch.zeros(3, len(requests), length, dtype=torch.long)
    for row, request in enumerate(requests):
        start = length - request.prompt_length
        ids[row, start:] = request.encoded.input_ids
        mask[row, start:] = 1
        positions[:, row, start:] = request.encoded.position_ids
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    for name in ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw"):
        media = [value for request in requests if (value := getattr(request.encoded, name)) is not None]
        if media:
            inputs[name] = torch.cat(media)
    return {name: tensor.to(device) for name, tensor in inputs.items()}
