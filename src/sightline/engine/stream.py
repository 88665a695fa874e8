"""The way of one request's answers from the engine's thread to whoever reads them: a loop, or a waiting thread.

The engine never waits for a reader. What a slow reader has not taken yet it gets as one piece for each answer, which is
joined when it is taken: to join each piece as it comes would take as long as all before it, in the engine's thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sightline.engine.outputs import Logprob, RequestOutput

Wakeups = dict[asyncio.AbstractEventLoop, list[asyncio.Event]]


@dataclass(frozen=True)
class Delta:
    """What was added to one answer since its last delta. `finish_reason` is set in an answer's last one."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    def joined(self, later: Delta) -> Delta:
        """This and a later delta of the same answer as one."""
        return _joined((self, later))


def _joined(pieces: Sequence[Delta]) -> Delta:
    """Deltas of one answer as one."""
    last = pieces[-1]
    if len(pieces) == 1:
        return last
    told = any(piece.logprobs is not None for piece in pieces)
    return Delta(
        last.index,
        "".join(piece.text for piece in pieces),
        [token for piece in pieces for token in piece.token_ids],
        [entry for piece in pieces for entry in piece.logprobs or ()] if told else None,
        last.finish_reason,
        last.stop_reason,
    )


class Stream:
    """A request that was given to an `AsyncEngine`: read it with `for` or `async for`, or wait for its `result`.

    A request that cannot be used, or an engine that died, is an error where it is read. One that failed while it
    was computed ends with finish_reason "error" and says in `output.error` why.
    """

    def __init__(
        self,
        request_id: str,
        on_abort: Callable[[], None],
        *,
        deltas: bool = True,
        on_end: Callable[[Stream], None] | None = None,
    ) -> None:
        """`on_end` is called in the engine's thread when nothing follows; it must not take long."""
        self.id = request_id
        self.wants_deltas = deltas
        self.aborted = False
        self._on_abort: Callable[[], None] | None = on_abort
        self._on_end = on_end
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event: asyncio.Event | None = None
        self._inbox: dict[int, list[Delta]] = {}  # by answer, the one that has waited longest first
        self._output: RequestOutput | None = None
        self._current: Callable[[], RequestOutput] | None = None
        self._error: BaseException | None = None
        self._ended = False

    # Readers

    @property
    def ended(self) -> bool:
        """Whether nothing more is computed for it. Deltas may still wait to be read."""
        return self._ended

    @property
    def output(self) -> RequestOutput:
        """All that has come so far.

        Raises:
            RuntimeError: the request is not prepared yet (see `opened`).
        """
        with self._changed:  # it does not end while it is looked at
            if self._output is not None:
                return self._output
            if self._current is None:
                raise RuntimeError(f"request {self.id} has no output yet")
            return self._current()

    def abort(self) -> None:
        """End the answers at the next step; from any thread, any number of times."""
        on_abort = self._on_abort  # None once it has ended
        if on_abort is not None and not self.aborted:
            self.aborted = True
            on_abort()

    def result(self, timeout: float | None = None) -> RequestOutput:
        """Wait for the end.

        Raises:
            SightlineError: the prompt cannot be used. TimeoutError: it took longer than `timeout` seconds.
        """
        self._wait(lambda: self._ended, timeout)
        self._raise()
        return self.output

    def wait_opened(self, timeout: float | None = None) -> RequestOutput:
        """Wait until the prompt is prepared, and give its output, still without answers; raises as `result`."""
        self._wait(lambda: self._ended or self._current is not None, timeout)
        self._raise()
        return self.output

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Delta:
        self._wait(lambda: bool(self._inbox) or self._ended, None)
        delta = self._take()
        if delta is None:
            raise StopIteration
        return delta

    async def opened(self) -> RequestOutput:
        """As `wait_opened`, for a coroutine."""
        await self._until(lambda: self._ended or self._current is not None)
        self._raise()
        return self.output

    async def finished(self) -> RequestOutput:
        """As `result`, for a coroutine."""
        await self._until(lambda: self._ended)
        self._raise()
        return self.output

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> Delta:
        await self._until(lambda: bool(self._inbox) or self._ended)
        delta = self._take()
        if delta is None:
            raise StopAsyncIteration
        return delta

    # The engine's side

    def open(self, current: Callable[[], RequestOutput], wakeups: Wakeups) -> None:
        """The prompt is prepared; `current` gives its output as it is."""
        with self._changed:
            self._current = current
            self._wake(wakeups)

    def push(self, delta: Delta, wakeups: Wakeups) -> None:
        with self._changed:
            self._inbox.setdefault(delta.index, []).append(delta)
            self._wake(wakeups)

    def end(self, output: RequestOutput | None, wakeups: Wakeups, error: BaseException | None = None) -> None:
        """Nothing follows: the whole output, or why there is none."""
        with self._changed:
            if self._ended:
                return
            self._output, self._error, self._ended = output, error, True
            # A stream may be kept for long; the request, its pixels and the engine shall not be kept with it.
            self._current = self._on_abort = None
            on_end, self._on_end = self._on_end, None
            self._wake(wakeups)
        if on_end is not None:
            on_end(self)

    def _wake(self, wakeups: Wakeups) -> None:
        self._changed.notify_all()
        if self._loop is not None and self._event is not None:
            wakeups.setdefault(self._loop, []).append(self._event)

    def _take(self) -> Delta | None:
        with self._changed:
            pieces = self._inbox.pop(next(iter(self._inbox))) if self._inbox else None
        if pieces is not None:
            return _joined(pieces)
        self._raise()
        return None

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _wait(self, ready: Callable[[], bool], timeout: float | None) -> None:
        with self._changed:
            if not self._changed.wait_for(ready, timeout):
                raise TimeoutError(f"request {self.id} is not done after {timeout} s")

    async def _until(self, ready: Callable[[], bool]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            with self._changed:
                if self._loop is not loop:
                    self._loop, self._event = loop, asyncio.Event()
                if ready():
                    return
                event = self._event
                assert event is not None
                event.clear()
            await event.wait()


def wake(wakeups: Wakeups) -> None:
    """Tell each loop once what has come; called once a step, not once a token."""
    for loop, events in wakeups.items():
        try:
            loop.call_soon_threadsafe(_set_all, events)
        except RuntimeError:  # the loop is closed: nobody reads there any more
            continue
    wakeups.clear()


def _set_all(events: list[asyncio.Event]) -> None:
    for event in events:
        event.set()
