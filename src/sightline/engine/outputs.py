"""What a request gives back, with the fields that vLLM's users read."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Logprob:
    """One token's place in the model's distribution, before temperature and penalties.

    Attributes:
        logprob: natural logarithm of its probability.
        rank: 1 for the most likely token.
        decoded_token: its text alone; half a character reads as the decoder's replacement character.
    """

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    """One answer.

    Attributes:
        token_ids: all generated tokens, an end token included.
        finish_reason: "stop", "length", "abort" or "error"; None while it grows.
        stop_reason: the stop text or stop token id that ended it, None for the model's own end token.
        cumulative_logprob: sum of the tokens' log-probabilities, where `logprobs` were asked for.
        logprobs: by token of the answer, the chosen token first and then the most likely ones by id.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass
class RequestMetrics:
    """Seconds that each stage of a request took.

    Attributes:
        fetch: getting the media's bytes; decode: bytes to pixels; preprocess: all of the preparation, these included.
        queue: from being prepared to the first step that computes some of it.
        encode: the steps' time in the vision encoder for its media.
        prefill: from its first step to its first token, without `encode`; decode_time: from there to the end.
        time_to_first_token, total: from the moment the request was given.
    """

    fetch: float = 0.0
    decode: float = 0.0
    preprocess: float = 0.0
    queue: float = 0.0
    encode: float = 0.0
    prefill: float = 0.0
    decode_time: float = 0.0
    time_to_first_token: float | None = None
    total: float = 0.0


@dataclass
class RequestOutput:
    """One prompt and its answers.

    Attributes:
        prompt: the prompt as text, None if it was given as token ids.
        prompt_token_ids: with every image and video token.
        prompt_logprobs: where they were asked for: None for the first token, then for each token of the prompt the
            most likely ones and itself.
        num_cached_tokens: tokens of the prompt whose keys and values were in the cache already.
        vision_tokens: how many of the prompt's tokens stand for images and videos.
        error: what went wrong while it was computed, one sentence; its answers then end with "error".
        forbidden: the request's own settings left no token to choose, which is the error.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    num_cached_tokens: int = 0
    vision_tokens: int = 0
    metrics: RequestMetrics = field(default_factory=RequestMetrics)
    error: str | None = None
    forbidden: bool = False

    @property
    def finished(self) -> bool:
        return all(output.finished() for output in self.outputs)

    @property
    def completion_tokens(self) -> int:
        return sum(len(output.token_ids) for output in self.outputs)
