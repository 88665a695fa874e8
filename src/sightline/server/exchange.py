"""One request between its client and the engine: whichever of the two ends first ends it for the other.

The event loop never computes and never waits for a lock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from sightline.engine.outputs import RequestOutput
from sightline.engine.stream import Delta, Stream
from sightline.errors import SightlineError
from sightline.server.errors import RequestError
from sightline.server.worker import FAILED, STOPPING, refusal

log = logging.getLogger("sightline.server")

# Proxies must pass events on as they come.
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_T = TypeVar("_T")


class Exchange:
    """A request that was given to the engine.

    Attributes:
        model: what the client called the model, and answers shall.
    """

    def __init__(
        self, stream: Stream, model: str, seconds: float | None = None, *, spent: float = 0.0
    ) -> None:
        """`seconds` after its arrival, of which `spent` are over, the request is ended where it stands."""
        self.stream = stream
        self.model = model
        self._seconds = seconds
        self._expired = False
        loop = asyncio.get_running_loop()
        self._timer = None if seconds is None else loop.call_later(seconds - spent, self._expire)

    @property
    def output(self) -> RequestOutput:
        """All that has come so far."""
        return self.stream.output

    @property
    def output_so_far(self) -> RequestOutput | None:
        """As `output`; None of a request that was never prepared."""
        try:
            return self.stream.output
        except RuntimeError:
            return None

    async def opened(self) -> RequestOutput:
        """Wait until the prompt is prepared: what cannot be used is known then, and no status line is sent yet.

        Raises:
            RequestError: the prompt or its settings cannot be used.
        """
        try:
            return await self.stream.opened()
        except BaseException as error:
            self.abort()  # its timer too, which would keep it for minutes
            if isinstance(error, SightlineError):
                raise self._refused(error) from error
            raise

    async def finished(self) -> RequestOutput:
        """Wait for whole answers.

        Raises:
            RequestError: the engine failed (the cause is in the log), the server is stopping, or time is up.
        """
        try:
            output = await self.stream.finished()
        except SightlineError as error:
            raise self._refused(error) from error
        finally:
            self.abort()
        self._check(output)
        return output

    async def deltas(self) -> AsyncIterator[Delta]:
        """What a request brings; raises as `finished`. Leaving the loop, or its cancellation, ends the request."""
        try:
            async for delta in self.stream:
                if delta.finish_reason not in ("abort", "error"):
                    yield delta
            self._check(self.stream.output)
        except SightlineError as error:
            raise self._refused(error) from error
        finally:
            self.abort()

    def abort(self) -> None:
        """End the request at the engine's next step; nothing happens where it has ended."""
        if self._timer is not None:
            self._timer.cancel()
        self.stream.abort()

    def _expire(self) -> None:
        if not self.stream.ended:
            self._expired = True
            self.stream.abort()

    def _refused(self, error: SightlineError) -> RequestError:
        return late(self._seconds) if self._expired else refusal(error)

    def _check(self, output: RequestOutput) -> None:
        if output.error is not None and output.forbidden:
            raise RequestError(output.error)
        if output.error is not None:
            log.error("answering request %s failed: %s", output.request_id, output.error)
            raise RequestError(FAILED, status=500)
        if any(answer.finish_reason == "abort" for answer in output.outputs):
            raise late(self._seconds) if self._expired else RequestError(STOPPING, status=503)


def late(seconds: float | None) -> RequestError:
    """That a request's time is up."""
    message = f"the answer took longer than {seconds:g} s; ask for less, or give the server more time"
    return RequestError(message, status=504, code="timeout")


class Events(StreamingResponse):
    """A stream's events. A client that left before the first of them was asked for ends its request too."""

    def __init__(
        self, pieces: AsyncIterator[str], *exchanges: Exchange, media_type: str = "text/event-stream"
    ) -> None:
        super().__init__(pieces, media_type=media_type, headers=_HEADERS)
        self._exchanges = exchanges

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            for exchange in self._exchanges:
                exchange.abort()


async def until_left(http: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """What `work` gives; it is cancelled when the client leaves. The body must have been read.

    Raises:
        ClientDisconnect: the client left first.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_left(http))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        watcher.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))


async def _left(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
