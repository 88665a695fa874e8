"""What the engine keeps of a request beside its sequences: how it came to be, and what only its output needs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sightline.engine.outputs import Logprob, RequestMetrics, RequestOutput
from sightline.engine.sampling.speculation import NgramIndex

if TYPE_CHECKING:
    from sightline.engine.scheduling.request import Request


@dataclass
class Preparation:
    """How a request came to be.

    Attributes:
        text: the prompt as it was given, if it was a text.
        given: time.perf_counter() when the caller gave it.
        fetch, decode, total: seconds of its preparation.
    """

    text: str | None = None
    given: float = field(default_factory=time.perf_counter)
    fetch: float = 0.0
    decode: float = 0.0
    total: float = 0.0


@dataclass
class Record:
    """One request in the engine.

    Attributes:
        added: time.perf_counter() when the engine got it, prepared.
        encode: seconds of the vision encoder for its media.
        prompt_logprobs: as `RequestOutput` has them.
        lookups: by answer, for speculation.
        counted: answers whose end the totals hold.
    """

    request: Request
    preparation: Preparation
    added: float = field(default_factory=time.perf_counter)
    encode: float = 0.0
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    lookups: dict[int, NgramIndex] = field(default_factory=dict)
    counted: set[int] = field(default_factory=set)

    def output(self) -> RequestOutput:
        """The request's answers as they are now."""
        request = self.request
        return RequestOutput(
            request_id=request.id,
            prompt=self.preparation.text,
            prompt_token_ids=request.prompt,
            outputs=[sequence.answer.output for sequence in request.sequences],
            prompt_logprobs=self.prompt_logprobs,
            num_cached_tokens=request.cached_tokens,
            vision_tokens=sum(medium.tokens for medium in request.media),
            metrics=self.metrics(),
            error=request.error,
            forbidden=any(sequence.answer.forbidden for sequence in request.sequences),
        )

    def metrics(self) -> RequestMetrics:
        """Seconds of each stage, up to now where it has not ended."""
        now = time.perf_counter()
        sequences, preparation = self.request.sequences, self.preparation
        scheduled = min((s.scheduled_at for s in sequences if s.scheduled_at is not None), default=None)
        first = min((s.first_token_at for s in sequences if s.first_token_at is not None), default=None)
        end = max(s.finished_at if s.finished_at is not None else now for s in sequences)
        metrics = RequestMetrics(
            fetch=preparation.fetch,
            decode=preparation.decode,
            preprocess=preparation.total,
            queue=(end if scheduled is None else scheduled) - self.added,
            encode=self.encode,
            total=end - preparation.given,
        )
        if first is not None and scheduled is not None:
            metrics.time_to_first_token = first - preparation.given
            metrics.prefill = max(0.0, first - scheduled - self.encode)
            metrics.decode_time = end - first
        return metrics
