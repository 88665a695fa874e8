"""The requests that this server has open in an engine; none is left open at the end."""

from __future__ import annotations

import logging
from typing import Any

from sightline.engine.errors import EngineDied, EngineFull, EngineStopped
from sightline.engine.llm import LLM
from sightline.engine.sampling.params import ParameterError, SamplingParams
from sightline.engine.stream import Stream
from sightline.errors import SightlineError
from sightline.server.errors import RequestError

log = logging.getLogger("sightline.server")

STOPPING = "the server is stopping"
FAILED = "the server failed while answering"


class Worker:
    """Gives requests to an engine, which others may use too."""

    def __init__(self, llm: LLM) -> None:
        self._engine = llm.engine
        self._open: set[Stream] = set()
        self._closed = False

    def add(self, prompt: Any, params: SamplingParams, **options: Any) -> Stream:
        """Give a request to the engine; its stream says whether it can be used.

        Args:
            options: of `AsyncEngine.add`.

        Raises:
            RequestError: it cannot be used, or the server is stopping or full.
        """
        if self._closed:
            raise RequestError(STOPPING, status=503)
        try:
            stream = self._engine.add(prompt, params, on_end=self._open.discard, **options)
        except SightlineError as error:
            raise refusal(error) from error
        self._open.add(stream)
        if stream.ended:
            self._open.discard(stream)
        if self._closed:
            stream.abort()
        return stream

    @property
    def open(self) -> int:
        """Requests that have not ended."""
        return len(self._open)

    @property
    def alive(self) -> bool:
        return self._engine.alive

    def close(self) -> None:
        """Take no more, and end every request at the engine's next step; from any thread, any number of times."""
        self._closed = True
        for stream in list(self._open):
            stream.abort()


def refusal(error: SightlineError) -> RequestError:
    """An error of the engine as the client hears of it."""
    if isinstance(error, EngineFull):
        return RequestError(str(error), status=503)
    if isinstance(error, EngineDied):
        log.error("%s", error)
        return RequestError(FAILED, status=500)
    if isinstance(error, EngineStopped):
        return RequestError(STOPPING, status=503)
    return RequestError(str(error), param=error.name if isinstance(error, ParameterError) else "messages")
