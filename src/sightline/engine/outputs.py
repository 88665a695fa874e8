"""What a request gives back, with the fields that vLLM's users read."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class CompletionOutput:
    """One answer.

    Attributes:
        token_ids: all generated tokens, an end token included.
        finish_reason: "stop", "length" or "abort"; None while it grows.
        stop_reason: the stop text or stop token id that ended it, None for the model's own end token.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass
class RequestMetrics:
    """Seconds. `time_to_first_token` and `total` count from the moment the request was given."""

    preprocess: float = 0.0
    time_to_first_token: float | None = None
    total: float = 0.0


@dataclass
class RequestOutput:
    """One prompt and its answers.

    Attributes:
        prompt: the prompt as text, None if it was given as token ids.
        prompt_token_ids: with every image and video token.
        vision_tokens: how many of them stand for images and videos.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    vision_tokens: int = 0
    metrics: RequestMetrics = field(default_factory=RequestMetrics)

    @property
    def finished(self) -> bool:
        return all(output.finished() for output in self.outputs)

    @property
    def completion_tokens(self) -> int:
        return sum(len(output.token_ids) for output in self.outputs)
