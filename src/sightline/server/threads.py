"""Calls that may block for long: name servers, network drives, a tokenizer with megabytes of text.

Each has a thread of its own that ends with it. A thread pool would not do: a call that is stuck would keep the
process from ending, and one that nobody waits for any more would have to be waited for. asyncio.to_thread has one.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Threads:
    """At most `count` calls at once; the next wait their turn. For one event loop.

    Args:
        name: of the threads.
        busy: makes the error that is raised where the system gives no more threads.
    """

    def __init__(self, count: int, name: str, busy: Callable[[], Exception]) -> None:
        self._turns = asyncio.Semaphore(count)
        self._name = name
        self._busy = busy

    async def run(self, call: Callable[[], T]) -> T:
        """What `call` gives or raises. Cancelled, it goes on by itself and keeps its place until it ends.

        Raises:
            Exception: `busy`'s.
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
            raise self._busy() from error
        return await waiting
