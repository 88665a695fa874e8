"""One answer on its way: its tokens, its block table, and how far the model has computed it.

Tensor-free, so that the scheduler and the block pool can be read and tested without a model.
"""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sightline.engine.sampling.answer import Answer
    from sightline.engine.scheduling.request import Request


class Status(Enum):
    """Where a sequence stands: not computed now, in the running batch, or at its end."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """A prompt and one answer to it.

    Attributes:
        index: which of the request's answers this is.
        tokens: prompt and answer so far.
        limit: most answer tokens.
        computed: tokens whose keys and values are in the cache; below len(tokens) while it runs.
        blocks: the block table; block i holds tokens [i * block_size, (i + 1) * block_size).
        drafts: tokens proposed to follow `tokens`; the engine sets them before a step is scheduled.
        preemptions: how often it lost its blocks and began again.
        published, parent: the block pool's own: how many of its blocks others may find, and the key that
            the next one continues.
        pinned: the scheduler's own: media whose features it holds, and the prompt index behind their last token.
        arrived_at, scheduled_at, first_token_at, finished_at: time.perf_counter(), None until it happens.
        told_at: the same of the last step that brought a token, as the totals saw it.
    """

    def __init__(self, request: Request, index: int, answer: Answer, limit: int) -> None:
        self.request = request
        self.index = index
        self.answer = answer
        self.limit = limit
        self.tokens = list(request.prompt)
        self.prompt_length = len(request.prompt)
        self.computed = 0
        self.blocks: list[int] = []
        self.status = Status.WAITING
        self.drafts: list[int] = []
        self.preemptions = 0
        self.published = 0
        self.parent: Hashable = None
        self.pinned: dict[int, int] = {}
        self.arrived_at = request.arrived_at
        self.scheduled_at: float | None = None
        self.first_token_at: float | None = None
        self.finished_at: float | None = None
        self.told_at: float | None = None

    def __repr__(self) -> str:
        return (
            f"Sequence({self.request.id}/{self.index}, {self.status.value}, "
            f"{self.computed} of {len(self.tokens)} tokens computed)"
        )

    @property
    def order(self) -> tuple[int, int, int]:
        """The more important of two sequences has the smaller one; no two are equal."""
        return self.request.priority, self.request.arrival, self.index

    @property
    def pending(self) -> int:
        """Known tokens that are not computed."""
        return len(self.tokens) - self.computed

    @property
    def decoding(self) -> bool:
        """Whether all but its newest token is computed, and that one is an answer's."""
        return self.computed >= self.prompt_length and self.pending == 1

    @property
    def most_computed(self) -> int:
        """Tokens whose keys and values it can come to need; the last answer token needs none."""
        return self.prompt_length + self.limit - 1
