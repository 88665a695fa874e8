"""Calls that may block for as long as somebody else likes: name servers, network drives.

Each has a thread of its own that ends with it. A thread pool would not do: a call that is stuck would keep the
process from ending, and one that nobody waits for any more would have to be waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from sightline.server.media.refusal import busy

T = TypeVar("T")


class Threads:
    """At most `count` calls at once; the next wait their turn. For one event loop."""

    def __init__(self, count: int, name: str) -> None:
        self._turns = asyncio.Semaphore(count)
        self._name = name

    async def run(self, call: Callable[[], T]) -> T:
        """What `call` gives or raises. Cancelled, it goes on by itself and keeps its place until it ends.

        Raises:
            Refused: 503, the system gives no more threads.
        """
        await self._turns.acquire()
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[T] = loop.create_future()

        def end(give: Callable[[], None]) -> None:
            self._turns.release()
            if not waiting.done():
                give()

        def work() -> None:
            try:
                value = call()
                give: Callable[[], None] = lambda: waiting.set_result(value)  # noqa: E731
            except BaseException as error:
                failure = error
                give = lambda: waiting.set_exception(failure)  # noqa: E731
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(end, give)

        try:
            threading.Thread(target=work, name=self._name, daemon=True).start()
        except RuntimeError as error:
            self._turns.release()
            raise busy() from error
        return await waiting
