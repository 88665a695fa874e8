"""Signals that are seen while the main thread is inside a collective."""

from __future__ import annotations

import signal
import socket
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType


class Signals:
    """SIGINT and SIGTERM as something to be read: Python's own handlers run in the main thread, and only when that is
    not inside a collective. Handlers of the program's own stay, and are left alone with their signals."""

    def __init__(self) -> None:
        self._here, self._there = socket.socketpair()
        self._here.setblocking(False)
        self._there.setblocking(False)
        self._term: Any = None
        self._old = -1
        self._in_main = threading.current_thread() is threading.main_thread()
        if self._in_main:
            self._old = signal.set_wakeup_fd(self._there.fileno(), warn_on_full_buffer=False)
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                self._term = signal.signal(signal.SIGTERM, _wait)

    def fileno(self) -> int:
        return self._here.fileno()

    def received(self) -> list[int]:
        try:
            numbers = list(self._here.recv(64))
        except OSError:
            return []
        ours: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: _wait}
        return [number for number in numbers if number in ours and signal.getsignal(number) is ours[number]]

    def restore(self) -> None:
        if self._in_main:
            signal.set_wakeup_fd(self._old)
            if self._term is not None:
                signal.signal(signal.SIGTERM, self._term)
        self._in_main = False


def _wait(number: int, frame: FrameType | None) -> None:
    """For SIGTERM: the thread ends the process, when the others know."""
