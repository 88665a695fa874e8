"""What a waiting person sees: a bar on a terminal, a plain line every few seconds elsewhere, on stderr.

Work that takes under two seconds shows nothing. Bars may nest: they share one display. Results never go
through here; they are printed on stdout by the command.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

Item = TypeVar("Item")

SHOW_AFTER = 2.0  # seconds of work before anything is shown
LINE_EVERY = 5.0  # seconds between plain lines

_lock = threading.RLock()
_quiet = os.environ.get("SIGHTLINE_QUIET", "") not in ("", "0")
_display: RichProgress | None = None  # the one live display that nested bars share
_users = 0


def set_quiet(quiet: bool = True) -> None:
    """Show no progress and no notes in this process (the command line's `--quiet`)."""
    global _quiet
    _quiet = quiet


def note(text: str) -> None:
    """Say one plain line on stderr, above a bar if one is shown. Silent under `set_quiet`."""
    if _quiet:
        return
    with _lock:
        if _display is not None:
            _display.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)


def track(iterable: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items of `iterable` while showing how far it is.

    Args:
        label: what is being done, in words ("checking rows").
        total: number of items; taken from `len(iterable)` if it has one, else only the count is shown.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with Progress(label, total) as progress:
        for item in iterable:
            yield item
            progress.advance()


class Progress:
    """Progress of work that is not a loop over items: bytes copied, steps of a plan, or just waiting.

    with Progress("downloading", total=size, unit="bytes") as progress:
        progress.advance(len(chunk))
    """

    def __init__(self, label: str, total: int | None = None, unit: str = "items") -> None:
        """`total` in units, None where unknown; `unit` "bytes" is shown in kB, MB and GB."""
        self.label = label
        self.total = total
        self.unit = unit
        self.done = 0
        self._task: TaskID | None = None
        self._shown = False
        self._over = False

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        if not _quiet:
            # A timer, because the first item alone may take long.
            self._timer = threading.Timer(SHOW_AFTER, self._show)
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if timer := getattr(self, "_timer", None):
            timer.cancel()
        with _lock:
            self._over = True
            if not self._shown:
                return
            self._leave_display()
            if kind is None:
                seconds = time.monotonic() - self._started
                note(f"{self.label}: {self._amount(self.done)} in {duration(seconds)}")

    def advance(self, amount: int = 1) -> None:
        """Say that `amount` more units are done."""
        self.update(self.done + amount)

    def update(self, done: int, total: int | None = None) -> None:
        """Say that `done` units are done in all, and correct the total if it has become known."""
        with _lock:
            self.done = done
            self.total = self.total if total is None else total
            if not self._shown:
                return
            if self._task is not None and _display is not None:
                _display.update(self._task, completed=done, total=self.total, detail=self._detail())
            elif time.monotonic() - self._last_line >= LINE_EVERY:
                self._print_line()

    def _show(self) -> None:
        with _lock:
            if self._over or _quiet:
                return
            # While a display is live, rich stands between us and stderr.
            if _display is not None or sys.stderr.isatty():
                self._join_display()
            else:
                self._print_line()
            self._shown = True

    def _join_display(self) -> None:
        global _display, _users
        if _display is None:
            _display = _new_display()
            _display.start()
        _users += 1
        self._task = _display.add_task(
            self.label, total=self.total, completed=self.done, detail=self._detail()
        )

    def _leave_display(self) -> None:
        global _display, _users
        if self._task is None or _display is None:
            return
        _display.remove_task(self._task)
        _users -= 1
        if _users == 0:
            _display.stop()
            _display = None

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        note(f"{self.label}: {self._detail()}, {duration(self._last_line - self._started)}{self._left()}")

    def _left(self) -> str:
        if not self.total or not self.done or self.done >= self.total:
            return ""
        seconds = (time.monotonic() - self._started) * (self.total / self.done - 1)
        return f", about {duration(seconds)} left"

    def _detail(self) -> str:
        if not self.total:
            return self._amount(self.done)
        return f"{self._amount(self.done)} of {self._amount(self.total)} ({self.done / self.total:.0%})"

    def _amount(self, count: int) -> str:
        return size(count) if self.unit == "bytes" else f"{count:,}"


def size(count: float) -> str:
    """Bytes in words, in powers of 1000: 1_500_000 -> "1.5 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Seconds in words: 3.2 -> "3.2 s", 75 -> "1 min 15 s", 7500 -> "2 h 05 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _new_display() -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns: list[Any] = [
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(compact=True),
    ]
    return RichProgress(*columns, console=Console(stderr=True), transient=True)
