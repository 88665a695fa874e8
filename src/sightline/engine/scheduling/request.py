"""What is asked of the engine: one prompt with its images and clips, and the answers to it."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sightline.engine.sampling.params import SamplingParams
from sightline.engine.scheduling.sequence import Sequence, Status

if TYPE_CHECKING:
    from sightline.engine.sampling.answer import Answer
    from sightline.models.adapters.loader import LoadedAdapter
    from sightline.models.processor import Encoded


@dataclass(frozen=True)
class Medium:
    """One image or clip of a prompt.

    Attributes:
        kind: "image" or "video".
        key: hash of content, processor settings, grid, seconds per patch and the adapter whose own tower sees it;
            equal keys mean equal features and equal positions.
        tokens: vision tokens, the rows of its features.
    """

    kind: str
    key: bytes
    tokens: int


@dataclass(frozen=True)
class Span:
    """A run of one medium's placeholders in the prompt; a clip of Qwen3-VL has one for each temporal patch.

    Attributes:
        medium: index into the request's media.
        start, length: the prompt's tokens [start, start + length).
        offset: the first of its feature rows.
    """

    medium: int
    start: int
    length: int
    offset: int

    @property
    def end(self) -> int:
        return self.start + self.length


class Request:
    """One prompt and the answers asked for.

    Args:
        answers: where the tokens of each answer go; one sequence is made for each.
        limit: most tokens of an answer.
        spans: where the media stand, not overlapping, in any order.
        priority: lower runs earlier.
        adapter: key of the adapter that computes it; sequences of different adapters share no blocks.
        encoded, adapted: pixels, positions and the adapter's weights for the runner.

    Attributes:
        arrival: set by the scheduler; the earlier of two requests has the smaller one.
        arrived_at: time.perf_counter() when it was made.
        cached_tokens: of the prompt, found in the prefix cache when it was first scheduled.
        error: why it failed, set by the engine.
    """

    def __init__(
        self,
        id: str,
        prompt: list[int],
        params: SamplingParams,
        answers: Iterable[Answer],
        *,
        limit: int,
        media: Iterable[Medium] = (),
        spans: Iterable[Span] = (),
        priority: int = 0,
        adapter: str | None = None,
        encoded: Encoded | None = None,
        adapted: LoadedAdapter | None = None,
    ) -> None:
        self.id = id
        self.prompt = prompt
        self.params = params
        self.media = list(media)
        self.spans = sorted(spans, key=lambda span: span.start)
        self.priority = priority
        self.arrival = 0
        self.adapter = adapter
        self.encoded = encoded
        self.adapted = adapted
        self.arrived_at = time.perf_counter()
        self.cached_tokens = 0
        self.error: str | None = None
        self.aborted = False
        self.on_abort: Callable[[Request], None] | None = None
        self.sequences = [Sequence(self, index, answer, limit) for index, answer in enumerate(answers)]
        self._ends = [span.end for span in self.spans]
        # Behind the last token of each medium.
        self.media_ends = [0] * len(self.media)
        for span in self.spans:
            self.media_ends[span.medium] = span.end

    def __repr__(self) -> str:
        return f"Request({self.id}, {len(self.prompt)} tokens, {len(self.sequences)} answers)"

    def abort(self) -> None:
        """End all answers before the engine's next step. May be called from any thread, any number of times."""
        # The flag first: a scheduler that takes the request on at this moment sets `on_abort`, then reads it.
        self.aborted = True
        if self.on_abort is not None:
            self.on_abort(self)

    @property
    def finished(self) -> bool:
        return all(sequence.status is Status.FINISHED for sequence in self.sequences)

    @property
    def logs_prompt(self) -> bool:
        """Whether the prompt's own log probabilities are asked, so that none of its tokens may be skipped."""
        return self.params.prompt_logprobs is not None

    def spans_between(self, start: int, end: int) -> Iterator[Span]:
        """The spans with a token in [start, end), in order."""
        for position in range(bisect_right(self._ends, start), len(self.spans)):
            span = self.spans[position]
            if span.start >= end:
                return
            yield span
