"""What became of one request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Outcome:
    """Times are in seconds; `start` on time.perf_counter().

    Attributes:
        start: when it was sent; lag: how long after the moment at which it was due, a wait for a place left out.
        ttft: from `start` to the first chunk with text; latency: to the last chunk of any kind.
        itls: between two chunks with text; chunks: how many of these there were.
        input_tokens, output_tokens: as the server counted them; None where it did not.
        timings: the server's own stages of the request, where it gives them.
        kind, error: how it failed, in two words and in a sentence; both empty for a request that was answered.
    """

    start: float = 0.0
    lag: float = 0.0
    ttft: float = 0.0
    latency: float = 0.0
    itls: list[float] = field(default_factory=list)
    chunks: int = 0
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_words: int = 0
    text: str = ""
    timings: dict[str, Any] | None = None
    streamed: bool = True
    kind: str = ""
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.kind

    @property
    def tokens(self) -> int:
        """Output tokens; where the server does not count them, the chunks with text."""
        return self.chunks if self.output_tokens is None else self.output_tokens

    @property
    def prompt_tokens(self) -> int:
        """Input tokens; where the server does not count them, the words sent."""
        return self.input_words if self.input_tokens is None else self.input_tokens

    @property
    def tpot(self) -> float:
        """Time per output token after the first, as vLLM computes it; 0 for a single token."""
        return (self.latency - self.ttft) / (self.tokens - 1) if self.tokens > 1 else 0.0

    def fail(self, kind: str, error: str) -> None:
        if not self.kind:
            self.kind, self.error = kind, error
