"""The load itself: calls that start when their time comes, so many at most at once; each leaves an `Outcome`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

import h11

from sightline.bench.serve.connection import failure_of
from sightline.bench.serve.outcome import Outcome
from sightline.errors import SightlineError
from sightline.progress import Progress

# Fills the outcome that it is given; may raise what a connection raises.
Call = Callable[[Outcome], Awaitable[None]]


@dataclass(frozen=True)
class Measured:
    """What a load left.

    Attributes:
        outcomes: of the requests that ended, in the order in which they were due.
        seconds: from the start to the last end.
        started: of the load, on time.perf_counter().
        unanswered: requests that were still open, or not yet sent, when it was interrupted.
    """

    outcomes: list[Outcome]
    seconds: float
    started: float
    unanswered: int = 0


async def run_load(
    calls: Sequence[Call],
    times: Sequence[float],
    *,
    max_concurrency: int | None = None,
    timeout: float | None = None,
    label: str = "asking",
    progress: bool = True,
) -> Measured:
    """Start call i `times[i]` seconds after the start; with `max_concurrency`, not before a place is free.

    A request that waits for a place is not yet sent, so that the wait is in none of its times (as in vLLM's
    benchmark). Ctrl-C ends the load early and leaves what has been measured.
    """
    places = asyncio.Semaphore(max_concurrency) if max_concurrency else contextlib.nullcontext()
    outcomes: dict[int, Outcome] = {}
    tasks: list[asyncio.Task[None]] = []

    async def one(number: int, due: float | None, bar: Progress | None) -> None:
        outcome = Outcome(lag=0.0 if due is None else time.perf_counter() - due)
        async with places:
            await guarded(calls[number], outcome, timeout)
        outcomes[number] = outcome
        if bar is not None:
            bar.advance()

    async def all_of_them(bar: Progress | None) -> None:
        for number, moment in enumerate(times):
            if (wait := started + moment - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(one(number, started + moment if moment else None, bar)))
        await asyncio.gather(*tasks)

    with _few_collections(), Progress(label, len(calls)) if progress else contextlib.nullcontext() as bar:
        started = time.perf_counter()
        whole = asyncio.create_task(all_of_them(bar))
        with _stopped_by_ctrl_c(whole):
            await asyncio.wait([whole])
        seconds = time.perf_counter() - started
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if not whole.cancelled() and (error := whole.exception()) is not None:
        raise error
    ended = [outcomes[number] for number in sorted(outcomes)]
    return Measured(ended, seconds, started, len(calls) - len(ended))


async def guarded(call: Call, outcome: Outcome, timeout: float | None) -> None:
    """Await a call; what goes wrong with it is part of its outcome."""
    outcome.start = time.perf_counter()
    try:
        await asyncio.wait_for(call(outcome), timeout)
    except asyncio.TimeoutError:
        outcome.fail("timed out", f"no end after {timeout:g} s; see --timeout")
    except SightlineError as error:
        outcome.fail("refused", str(error))
    except (OSError, h11.ProtocolError) as error:
        outcome.fail(*failure_of(error))


@contextlib.contextmanager
def _stopped_by_ctrl_c(task: asyncio.Task[None]) -> Iterator[None]:
    """The first Ctrl-C cancels `task`; a second one is an ordinary one again."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        task.cancel()

    try:
        loop.add_signal_handler(signal.SIGINT, stop)
    except (NotImplementedError, RuntimeError, ValueError):  # Windows, or not the main thread
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


@contextlib.contextmanager
def _few_collections() -> Iterator[None]:
    """Keep the collector from walking over everything that was made before, in the middle of a measurement."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
