"""The line in front of the engine: requests that are not prepared yet, and when the next of them is.

Only a few are prepared ahead of the engine, because a prepared request holds its pictures' pixels.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from sightline.data.conversation import Conversation
from sightline.engine.core import EngineCore
from sightline.engine.inputs import Prompt
from sightline.engine.outputs import CompletionOutput, RequestOutput
from sightline.engine.preprocess import Preparer
from sightline.engine.record import Preparation
from sightline.engine.sampling.params import SamplingParams
from sightline.engine.sampling.structured.matcher import Grammar
from sightline.engine.sampling.structured.params import StructuredOutputsParams
from sightline.engine.scheduling.request import Request
from sightline.engine.scheduling.sequence import Sequence
from sightline.engine.stream import Delta, Stream
from sightline.errors import SightlineError

log = logging.getLogger("sightline.engine")

Result = tuple[Request, Preparation] | Exception

_NOTHING = Prompt(Conversation([]))
_THREADS = 3  # that prepare beside an accelerator
_COMPILERS = 2  # threads that compile grammars, so that one that takes long does not keep the others waiting
_TURN = 0.05  # seconds that prepare at a stretch on a CPU while answers wait for their next token


@dataclass
class Job:
    """A request from its being given to its end.

    Attributes:
        options: of `Preparer.prepare`.
        preparing: it has left the line.
        told: tokens of each answer that deltas have brought; -1 when its end is told.
    """

    stream: Stream
    prompt: Prompt
    params: SamplingParams
    options: dict[str, Any]
    preparing: bool = False
    request: Request | None = None
    told: dict[int, int] = field(default_factory=dict)

    def news(self, sequence: Sequence) -> Delta | None:
        """What one of its answers has and was not told yet."""
        answer, output = sequence.answer, sequence.answer.output
        told = self.told.get(sequence.index, 0)
        if told < 0:
            return None
        ended = output.finish_reason is not None
        text, tokens = answer.text.take(), output.token_ids[told:]
        self.told[sequence.index] = -1 if ended else len(output.token_ids)
        if not (text or tokens or ended):
            return None
        logprobs = None if output.logprobs is None else output.logprobs[told:]
        return Delta(sequence.index, text, tokens, logprobs, output.finish_reason, output.stop_reason)

    def aborted(self) -> RequestOutput:
        """The output of a request that was aborted before it was prepared."""
        answers = [CompletionOutput(index, finish_reason="abort") for index in range(self.params.n)]
        return RequestOutput(self.stream.id, self.prompt.text, list(self.prompt.ids or ()), answers)

    def admitted(self, request: Request) -> None:
        """It is prepared: the files of its media are needed no more."""
        self.prompt, self.request = _NOTHING, request

    def drop(self) -> None:
        """It has ended: let go of its pictures and its adapter, whoever still holds the job."""
        if self.request is not None:
            # A request and its sequences refer to each other; neither shall wait for the collector.
            self.request.encoded = None
            self.request.adapted = None
        self.options["adapter"] = None
        self.prompt, self.request = _NOTHING, None


class Line:
    """Requests by priority, then in the order in which they came. For the engine's thread alone.

    Args:
        in_turn: prepare in the engine's thread (see `sightline.engine.preprocess`), else in threads of its own.
        tell: gives the engine's thread something to do.
        admit: takes what came of a job's preparation; called in the engine's thread.
    """

    def __init__(
        self,
        core: EngineCore,
        preparer: Preparer,
        *,
        in_turn: bool,
        tell: Callable[[Callable[[], None]], None],
        admit: Callable[[Job, Result], None],
    ) -> None:
        settings = core.settings
        self._core = core
        self._preparer = preparer
        self._tell = tell
        self._admit = admit
        self._seats = settings.max_num_seqs or 1
        self._step = settings.max_num_batched_tokens or 1
        self._pool = None if in_turn else ThreadPoolExecutor(_THREADS, "prepare")
        self._preparing = 0
        self._waiting: list[tuple[int, int, Job]] = []
        self._order = itertools.count()
        self._compilers: ThreadPoolExecutor | None = None
        self._compiling = 0

    def push(self, job: Job) -> None:
        """Take a request into the line; one that asks for a form as soon as that is compiled, at its old place.

        A thread beside the engine compiles, on a CPU too: it takes milliseconds, once for all requests of a form, and
        seconds only for what is refused in the end, and then in a process of low priority.
        """
        place, form = next(self._order), job.params.structured_outputs
        if form is None or self._is_compiled(job, form):
            return self._join(job, place)
        if self._compilers is None:
            self._compilers = ThreadPoolExecutor(_COMPILERS, "compile")
        try:
            self._compilers.submit(self._compile_beside, job, form, place)
        except RuntimeError:  # as in `advance`, which will say so
            return self._join(job, place)
        self._compiling += 1

    @property
    def moves(self) -> bool:
        """Whether the next request may be prepared now."""
        return bool(self._waiting) and self._preparing + self._core.waiting < 2 * self._seats

    @property
    def preparing(self) -> bool:
        """Whether threads beside the engine are at work."""
        return self._preparing + self._compiling > 0

    def advance(self) -> bool:
        """Prepare the next ones: beside the engine, or on a CPU what the next step has room for and at least one.

        Returns False where nothing can be prepared any more, because the process is ending.
        """
        begun = time.perf_counter()
        while self.moves:
            _, _, job = heapq.heappop(self._waiting)
            if job.stream.ended:  # aborted in the line
                continue
            job.preparing = True
            if self._pool is not None:
                try:
                    self._pool.submit(self._prepare_beside, job)
                except RuntimeError:  # Python shuts all pools before it calls what is registered for its exit
                    return False
                self._preparing += 1
                continue
            self._admit(job, self._prepare(job))
            if self._core.has_work and (self._is_enough() or time.perf_counter() - begun > _TURN):
                break
        return True

    def close(self) -> None:
        for pool in (self._pool, self._compilers):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)
        if self._compilers is not None:
            self._preparer.grammars.close()

    def _join(self, job: Job, place: int) -> None:
        heapq.heappush(self._waiting, (job.options["priority"], place, job))

    def _is_compiled(self, job: Job, form: StructuredOutputsParams) -> bool:
        """Whether nothing is left to compile; a form that is known to be faulty says so when it is prepared."""
        try:
            job.options["grammar"] = self._preparer.grammars.known(form)
        except SightlineError:
            return True
        return job.options["grammar"] is not None

    def _compile_beside(self, job: Job, form: StructuredOutputsParams, place: int) -> None:
        grammar: Grammar | Exception | None = None
        try:
            if not job.stream.aborted:
                grammar = self._preparer.grammars.compile(form)
        except Exception as error:
            if not isinstance(error, SightlineError):
                log.exception("compiling the form of request %s failed", job.stream.id)
            grammar = error

        def join() -> None:
            self._compiling -= 1
            if job.stream.aborted:  # the engine ends it, or has done so
                return
            if isinstance(grammar, Exception):
                return self._admit(job, grammar)
            job.options["grammar"] = grammar
            self._join(job, place)

        self._tell(join)

    def _is_enough(self) -> bool:
        """Whether one more would not take part in the next step."""
        core = self._core
        return core.running + core.waiting >= self._seats or core.waiting_tokens >= self._step

    def _prepare_beside(self, job: Job) -> None:
        result = self._prepare(job)

        def admit() -> None:
            self._preparing -= 1
            self._admit(job, result)

        self._tell(admit)

    def _prepare(self, job: Job) -> Result:
        try:
            return self._preparer.prepare(job.prompt, job.params, request_id=job.stream.id, **job.options)
        except Exception as error:
            if not isinstance(error, SightlineError):
                log.exception("preparing request %s failed", job.stream.id)
            return error
