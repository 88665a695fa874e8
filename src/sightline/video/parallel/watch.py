"""A rank that fails or dies ends the others, and the user reads one sentence.

Without this the others wait in a collective until its time-out, half an hour say, or every rank complains of the
connection that one of them closed. Each rank keeps a connection to rank 0 (`lookout`) in a thread of its own, which a
collective does not stop, for those wait without Python's lock.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sightline.errors import SightlineError, first_line
from sightline.video.parallel.agree import as_said
from sightline.video.parallel.lookout import Line, Lookout, gone
from sightline.video.parallel.signals import Signals

if TYPE_CHECKING:
    from sightline.video.parallel.layout import Layout

FUSE = 2.5  # seconds in which the rank that is to speak has to do so; fewer than lookout.LAST_WORDS
HANDOVER = 1.0  # seconds that a signal has to reach the main thread
_CONNECTION = re.compile(
    r"gloo|nccl|hccl|connection (was )?(closed|reset|refused)|broken pipe|timed? ?out", re.I
)


@contextmanager
def watched(layout: Layout, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """End all ranks within seconds when one raises, dies or is interrupted, with one sentence in all.

    Every rank enters it, after it has joined the others, and they leave it together. A failure inside ends the process:
    the error of the rank that failed first goes on to whoever prints errors, with the rank's number if the others did
    not fail alike; the other ranks leave the process with the same exit code and say nothing. A rank that died is told
    of by the lowest that lives. Ctrl-C and SIGTERM are seen even inside a collective, unless the program has handlers
    of its own. If the machine of ranks 0 and 1 is lost as a whole, the others end without a word.

    Args:
        layout: of this rank; alone, nothing is done.
        say: prints a sentence where no error can be raised; without it, on stderr after `error: `.

    Raises:
        SightlineError: rank 0 cannot be reached.
    """
    if layout.world == 1:
        yield
        return
    watch = _Watch(layout, say or _say)
    try:
        yield
        watch.done()
    except BaseException as error:
        if _is_success(error):
            watch.done()
        else:
            watch.failed(error)
        raise


class _Watch:
    def __init__(self, layout: Layout, say: Callable[[str], None]) -> None:
        self.rank, self.world, self.say = layout.rank, layout.world, say
        self._code = 1
        self._known = False  # whether someone speaks for all
        self._alone = False
        self._sentence = ""
        self._free = threading.Event()
        self._mine = threading.Event()  # this rank's error is the one to be told
        self._waiting = threading.Event()  # the main thread is here with its error
        self._told = threading.Event()  # the interpreter ends, so the error was printed
        token = secrets.token_hex(16)
        lookout = Lookout(layout.world, token) if layout.rank == 0 else None
        if lookout is not None:
            lookout.start()
        port, token, hosts, self._first = as_said(
            layout, (lookout.port if lookout else 0, token, _hosts(), _name())
        )
        self._line, self._heard = _reach(
            hosts, port, {"token": token, "rank": self.rank, "name": _name()}, self.rank
        )
        self._signals = Signals()
        self._thread = threading.Thread(target=self._listen, name="sightline-watch", daemon=True)
        self._thread.start()

    def done(self) -> None:
        """This rank is through; wait for the others."""
        self._line.send({"say": "done"})
        while not self._free.wait(1.0):
            pass
        self._thread.join()
        self._signals.restore()
        self._line.close()

    def failed(self, error: BaseException) -> None:
        """This rank failed; come back if it is to tell the user, else never."""
        code = _exit_code(error)
        self._report(_sentence(error), code, doubtful=_is_of_connection(error))
        self._waiting.set()
        while not self._mine.is_set():
            with contextlib.suppress(KeyboardInterrupt):  # once more: it is on its way
                self._mine.wait(1.0)
        self._signals.restore()
        atexit.register(self._told.set)
        if self._alone:
            _name_rank(error, self.rank)

    def _report(self, sentence: str, code: int, *, doubtful: bool) -> None:
        if not self._sentence and not self._known:
            self._sentence, self._code = sentence, code
        self._line.send({"say": "failed", "sentence": sentence, "code": code, "doubtful": doubtful})

    def _listen(self) -> None:
        for message in self._heard:
            self._obey(message)
        with selectors.DefaultSelector() as selector:
            selector.register(self._line, selectors.EVENT_READ)
            selector.register(self._signals, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._signals:
                        self._take_signals()
                        continue
                    messages = self._line.receive()
                    if messages is None:
                        self._lost_sight()
                    for message in messages or ():
                        self._obey(message)
                    if self._free.is_set():
                        return

    def _take_signals(self) -> None:
        for number in self._signals.received():
            if number == signal.SIGINT:
                self._report(_sentence(KeyboardInterrupt()), 128 + number, doubtful=False)
            elif number == signal.SIGTERM:
                # A launcher sends it to all when one has died: that one is then the reason.
                self._report("ended by SIGTERM", 128 + number, doubtful=True)

    def _obey(self, message: dict[str, Any]) -> None:
        if message["do"] == "go":
            self._free.set()
        elif message["do"] == "be quiet":
            self._known, self._code = True, message["code"]
        elif message["do"] == "end":
            _leave(self._code)
        elif message["do"] == "speak":
            self._speak(message.get("text", ""), message.get("alone", False))

    def _speak(self, text: str, alone: bool) -> None:
        if not text and self._waiting.wait(HANDOVER):
            self._alone = alone
            self._mine.set()
            # What is left on its way to whoever prints errors may hang, as leaving a broken process group can.
            if self._told.wait(FUSE):
                time.sleep(FUSE)
                _leave(self._code)
        self.say(text or (f"rank {self.rank}: {self._sentence}" if alone else self._sentence))
        _leave(self._code if not text else 1)

    def _lost_sight(self) -> None:
        """Rank 0 is no more."""
        if not self._known and self.rank == 1:
            self.say(gone(0, self._first, self.world))
        _leave(self._code)


def _hosts() -> list[str]:
    """Names under which the others may reach this machine."""
    return list(
        dict.fromkeys([os.environ.get("MASTER_ADDR") or "127.0.0.1", socket.gethostname(), "127.0.0.1"])
    )


def _name() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _reach(
    hosts: list[str], port: int, greeting: dict[str, Any], rank: int
) -> tuple[Line, list[dict[str, Any]]]:
    for host in hosts:
        try:
            line = Line(socket.create_connection((host, port), timeout=5.0))
        except OSError:
            continue
        line.send(greeting)
        # Another machine's program may listen at that port of its own 127.0.0.1.
        first, *more = line.receive() or [{}]
        if first == {"do": "welcome"}:
            line.connection.settimeout(None)
            return line, more
        line.close()
    raise SightlineError(
        f"rank {rank} cannot reach rank 0 at port {port} of {' or '.join(hosts)}; see that MASTER_ADDR names rank 0's "
        f"machine and no firewall is between"
    )


def _is_success(error: BaseException) -> bool:
    """`sys.exit(0)` and the like of typer."""
    if isinstance(error, SystemExit):
        return error.code in (None, 0)
    return getattr(error, "exit_code", None) == 0


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    code = getattr(error, "exit_code", 1)
    return code if isinstance(code, int) else 1


def _sentence(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return str(error) if isinstance(error, SightlineError) else f"{type(error).__name__}: {first_line(error)}"


def _is_of_connection(error: BaseException) -> bool:
    from torch.distributed import DistError

    if isinstance(error, SightlineError):
        return False
    words = isinstance(error, RuntimeError) and _CONNECTION.search(str(error)) is not None
    return words or isinstance(error, (DistError, ConnectionError))


def _name_rank(error: BaseException, rank: int) -> None:
    """Put the rank into the error's text, its kind and traceback being kept."""
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return
    if isinstance(error, OSError) and error.strerror:
        error.strerror = f"{error.strerror} (rank {rank})"
    else:
        error.args = (f"rank {rank}: {error}",)


def _say(text: str) -> None:
    print(f"error: {text}" if text != "interrupted" else text, file=sys.stderr, flush=True)


def _leave(code: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)
