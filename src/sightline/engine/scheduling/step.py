"""What one step of the engine computes, as the scheduler hands it to the runner."""

from __future__ import annotations

from dataclasses import dataclass, field

from sightline.engine.scheduling.request import Request
from sightline.engine.scheduling.sequence import Sequence


@dataclass(eq=False, slots=True)
class Chunk:
    """Neighbouring tokens of one sequence.

    Attributes:
        start: place of the first one in the sequence; everything before it is in the KV cache.
        tokens: ids to run, drafts included.
        drafts: how many at the end of `tokens` are drafts.
        samples: whether it reaches the end of what is known, so that its last 1 + drafts rows choose tokens.
    """

    sequence: Sequence
    start: int
    tokens: list[int]
    drafts: int = 0
    samples: bool = False


@dataclass
class Step:
    """One forward.

    Attributes:
        chunks: of decoding sequences first, then of prompts; at most one for each sequence.
        encode: (request, index into its media) whose features must be put before the forward, no key twice.
        preempted: sequences that lost their blocks to more important ones and wait again.
        aborted: requests that were ended because their `abort` was called; the scheduler has forgotten them.
    """

    chunks: list[Chunk] = field(default_factory=list)
    encode: list[tuple[Request, int]] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    aborted: list[Request] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(len(chunk.tokens) for chunk in self.chunks)
