"""How many tokens a request took, and how long: `usage` as OpenAI tells it, `timings` of our own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sightline.engine.outputs import RequestOutput


def usage_of(outputs: Sequence[RequestOutput]) -> dict[str, Any]:
    """Token counts of all prompts of a request, with the cached and the vision tokens among the prompts'."""
    prompt = sum(len(output.prompt_token_ids) for output in outputs)
    answer = sum(output.completion_tokens for output in outputs)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {
            "cached_tokens": sum(output.num_cached_tokens for output in outputs),
            "vision_tokens": sum(output.vision_tokens for output in outputs),
        },
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


def timings_of(outputs: Sequence[RequestOutput]) -> dict[str, Any]:
    """Seconds of each stage; of several prompts, which are computed together, the longest."""
    stages: dict[str, Any] = {
        ours: max(getattr(output.metrics, theirs) for output in outputs) for ours, theirs in _STAGES.items()
    }
    waits = [output.metrics.time_to_first_token for output in outputs]
    stages["time_to_first_token"] = max((wait for wait in waits if wait is not None), default=None)
    stages["total"] = max(output.metrics.total for output in outputs)
    # The first token of each answer came before generation began.
    tokens = sum(max(0, len(answer.token_ids) - 1) for output in outputs for answer in output.outputs)
    seconds = stages["generation"]
    stages["tokens_per_second"] = tokens / seconds if tokens and seconds > 0 else None
    return {name: None if value is None else round(value, 6) for name, value in stages.items()}


_STAGES = {
    "fetch": "fetch",
    "decode": "decode",
    "preprocess": "preprocess",
    "queue": "queue",
    "encode": "encode",
    "prefill": "prefill",
    "generation": "decode_time",
}
