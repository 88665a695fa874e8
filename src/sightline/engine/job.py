"""A prompt on its way through the engine: the answers it asks for, and their text as it comes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sightline.engine.outputs import RequestOutput
from sightline.engine.static_request import Request


@dataclass
class Job:
    """A prompt on its way: the answers asked for are one request each."""

    id: str
    prompt: str | None
    requests: list[Request]
    preprocess: float

    def output(self) -> RequestOutput:
        first = self.requests[0]
        metrics = replace(first.metrics, preprocess=self.preprocess)
        metrics.total = max(request.metrics.total for request in self.requests)
        return RequestOutput(
            request_id=self.id,
            prompt=self.prompt,
            prompt_token_ids=first.encoded.input_ids.tolist(),
            outputs=[request.output for request in self.requests],
            vision_tokens=first.encoded.vision_tokens,
            metrics=metrics,
        )

    def abort(self) -> None:
        """End the answers at the next step; from any thread."""
        for request in self.requests:
            request.abort()

    @property
    def aborted(self) -> bool:
        """Whether an answer was ended before its own end."""
        return any(request.output.finish_reason == "abort" for request in self.requests)


@dataclass(frozen=True)
class Delta:
    """What one step added to one answer. `finish_reason` is set in an answer's last delta."""

    index: int
    text: str
    finish_reason: str | None
