"""How many tokens a request took, and how long: `usage` as OpenAI tells it, `timings` of our own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sightline.engine.outputs import RequestOutput
from sightline.engine.stream import Delta


def usage_of(outputs: Sequence[RequestOutput]) -> dict[str, Any]:
    """Token counts of all prompts of a request, with the cached and the vision tokens among the prompts'."""
    return _usage(outputs, sum(output.completion_tokens for output in outputs))


class RunningUsage:
    """The usage of a request while its answers grow.

    Whole outputs are looked at once a prompt, for to make one takes as long as its answers are: at the prompt's first
    delta, when it is known what of it was cached.

    Args:
        silent: the answers are told to be empty.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self._silent = silent
        self._prompts: Sequence[RequestOutput] = ()
        self._begun: set[int] = set()
        self._answered = 0

    def begin(self, outputs: Sequence[RequestOutput]) -> None:
        """The prompts are prepared; no delta has come."""
        self._prompts = outputs

    def add(self, number: int, delta: Delta, outputs: Callable[[], Sequence[RequestOutput]]) -> None:
        """Count a delta of one prompt; `outputs` gives those of all prompts so far."""
        if number not in self._begun:
            self._begun.add(number)
            self._prompts = outputs()
        self._answered += 0 if self._silent else len(delta.token_ids)

    def told(self) -> dict[str, Any]:
        """As `usage_of`, of what has been counted."""
        return _usage(self._prompts, self._answered)


def _usage(outputs: Sequence[RequestOutput], answer: int) -> dict[str, Any]:
    prompt = sum(len(output.prompt_token_ids) for output in outputs)
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
