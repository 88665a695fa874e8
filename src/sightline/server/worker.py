"""Between the event loop and the engine: requests wait in line for one thread, and their text comes back.

The event loop never computes and never waits for a lock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from sightline.engine.job import Delta, Job
from sightline.engine.llm import LLM
from sightline.server.errors import RequestError

Result = TypeVar("Result")
log = logging.getLogger("sightline.server")

STOPPING = "the server is stopping"
_OPENERS = 2  # threads that open media; more would fight the engine for the processor


class Worker:
    """One engine thread, first come first served, and a few threads that open media."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._engine = ThreadPoolExecutor(1, "engine")
        self._openers = ThreadPoolExecutor(_OPENERS, "media")
        self._jobs: dict[int, Job] = {}

    async def open(self, prepare: Callable[[], Result]) -> Result:
        """Run the opening of a request's media beside the event loop."""
        return await asyncio.wrap_future(self._submit(self._openers, prepare))

    async def answer(self, job: Job) -> AsyncIterator[Delta]:
        """The deltas of a job. Leaving the loop, or its cancellation, aborts the job.

        Raises:
            RequestError: the engine failed (the cause is in the log), or the server is stopping.
        """
        loop = asyncio.get_running_loop()
        # Not bounded: a slow client must not hold the engine, and an answer is at most the model's length.
        queue: asyncio.Queue[Delta | RequestError | None] = asyncio.Queue()

        def put(item: Delta | RequestError | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(queue.put_nowait, item)

        self._jobs[id(job)] = job
        self._submit(self._engine, self._pump, job, put)
        try:
            while (item := await queue.get()) is not None:
                if isinstance(item, RequestError):
                    raise item
                yield item
        finally:
            job.abort()
            self._jobs.pop(id(job), None)

    def _submit(self, pool: ThreadPoolExecutor, work: Callable[..., Result], *given: Any) -> Future[Result]:
        try:
            return pool.submit(work, *given)
        except RuntimeError as error:  # the pool is shut down
            raise RequestError(STOPPING, status=503) from error

    def _pump(self, job: Job, put: Callable[[Any], None]) -> None:
        try:
            for delta in self._llm.stream(job):
                put(delta)
        except Exception:
            log.exception("answering request %s failed", job.id)
            put(RequestError("the server failed while answering", status=500))
        finally:
            put(None)

    def close(self) -> None:
        """Take no more, and end every job at its next step; from any thread, any number of times."""
        self._engine.shutdown(wait=False)
        self._openers.shutdown(wait=False)
        for job in list(self._jobs.values()):
            job.abort()
