"""Between the event loop and the engine: requests go in, what they bring is read, and none is left open at the end.

The event loop never computes and never waits for a lock.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

from sightline.data.conversation import Conversation
from sightline.engine.errors import EngineDied, EngineFull, EngineStopped
from sightline.engine.llm import LLM
from sightline.engine.outputs import RequestOutput
from sightline.engine.sampling.params import ParameterError, SamplingParams
from sightline.engine.stream import Delta, Stream
from sightline.errors import SightlineError
from sightline.server.chat import BUDGET
from sightline.server.errors import RequestError

log = logging.getLogger("sightline.server")

STOPPING = "the server is stopping"
FAILED = "the server failed while answering"


class Worker:
    """The requests that this server has open in an engine, which others may use too."""

    def __init__(self, llm: LLM) -> None:
        self._engine = llm.engine
        self._open: set[Stream] = set()
        self._closed = False

    def add(self, conversation: Conversation, params: SamplingParams) -> Stream:
        """Give a request to the engine; `opened` says whether it can be used.

        Raises:
            RequestError: it cannot be used, or the server is stopping or full.
        """
        if self._closed:
            raise RequestError(STOPPING, status=503)
        try:
            stream = self._engine.add(conversation, params, budget=BUDGET, on_end=self._open.discard)
        except SightlineError as error:
            raise _refusal(error) from error
        self._open.add(stream)
        if stream.ended:
            self._open.discard(stream)
        if self._closed:
            stream.abort()
        return stream

    async def opened(self, stream: Stream) -> RequestOutput:
        """Wait until a request's media are opened.

        Raises:
            RequestError: they cannot be used.
        """
        try:
            return await stream.opened()
        except SightlineError as error:
            raise _refusal(error) from error

    async def finished(self, stream: Stream) -> RequestOutput:
        """Wait for whole answers.

        Raises:
            RequestError: the engine failed (the cause is in the log), or the server is stopping.
        """
        try:
            output = await stream.finished()
        except SightlineError as error:
            raise _refusal(error) from error
        _check(output)
        return output

    async def deltas(self, stream: Stream) -> AsyncIterator[Delta]:
        """What a request brings; raises as `finished`. Leaving the loop, or its cancellation, ends the request."""
        try:
            async for delta in stream:
                if delta.finish_reason not in ("abort", "error"):
                    yield delta
            _check(stream.output)
        except SightlineError as error:
            raise _refusal(error) from error
        finally:
            stream.abort()

    @property
    def alive(self) -> bool:
        return self._engine.alive

    def close(self) -> None:
        """Take no more, and end every request at the engine's next step; from any thread, any number of times."""
        self._closed = True
        for stream in list(self._open):
            stream.abort()


def _check(output: RequestOutput) -> None:
    if output.error is not None:
        log.error("answering request %s failed: %s", output.request_id, output.error)
        raise RequestError(FAILED, status=500)
    if any(answer.finish_reason == "abort" for answer in output.outputs):
        raise RequestError(STOPPING, status=503)


def _refusal(error: SightlineError) -> RequestError:
    """An error of the engine as the client hears of it."""
    if isinstance(error, EngineFull):
        return RequestError(str(error), status=503)
    if isinstance(error, EngineDied):
        log.error("%s", error)
        return RequestError(FAILED, status=500)
    if isinstance(error, EngineStopped):
        return RequestError(STOPPING, status=503)
    return RequestError(str(error), param=error.name if isinstance(error, ParameterError) else "messages")
