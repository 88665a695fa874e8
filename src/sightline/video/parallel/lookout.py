"""Where all ranks of a group are seen from: which still live, which failed, and who tells the user.

Rank 0 holds it. Every rank keeps a connection to it, and when a process dies, whatever the reason, its system closes
the connection at once: there is no pulse to be late with, and no rank that is only busy is taken for dead.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import selectors
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GRACE = 0.5  # seconds in which failures of several ranks count as one
LAST_WORDS = 4.0  # seconds that the rank which tells the user has until the others end
ARRIVAL = 30.0  # seconds in which every rank has to connect


class Line:
    """A connection that carries JSON objects, one a line."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._rest = b""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A machine that loses its power closes nothing: after some ten seconds without an answer it counts as gone.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, option):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)

    def fileno(self) -> int:
        return self.connection.fileno()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send it; to one that is gone, nothing: its end is seen where it is read."""
        try:
            self.connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return

    def receive(self) -> list[dict[str, Any]] | None:
        """What has come, after waiting for something; None when the other side is gone."""
        try:
            data = self.connection.recv(65536)
        except OSError:
            return None
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            return [dict(json.loads(line)) for line in lines]
        except (ValueError, TypeError):
            return None  # somebody else's program

    def close(self) -> None:
        self.connection.close()


@dataclass(frozen=True)
class Failure:
    """Why a rank ends.

    Attributes:
        sentence: what went wrong; equal ones of all ranks are told once, as everyone's.
        code: of the exit.
        doubtful: it may only follow from another rank's end, as a lost connection does.
    """

    sentence: str
    code: int
    doubtful: bool


class Lookout(threading.Thread):
    """Rank 0's thread.

    Args:
        size: how many ranks there are.
        token: what they know one another by.

    Attributes:
        port: where it listens.
    """

    def __init__(self, size: int, token: str) -> None:
        super().__init__(name="sightline-lookout", daemon=True)
        self.size, self.token = size, token
        self._door = _door(size)
        self.port: int = self._door.getsockname()[1]
        self._lines: dict[int, Line] = {}
        self._names: dict[int, str] = {}
        self._done: set[int] = set()
        self._lost: list[int] = []
        self._failures: dict[int, Failure] = {}
        self._deadline = float("inf")
        self._arrival = time.monotonic() + ARRIVAL

    def run(self) -> None:
        with selectors.DefaultSelector() as selector, self._door:
            self._door.setblocking(False)
            selector.register(self._door, selectors.EVENT_READ)
            while True:
                now = time.monotonic()
                missing = [rank for rank in range(self.size) if rank not in self._names]
                wait = min(self._deadline, self._arrival if missing else float("inf")) - now
                events = selector.select(None if wait == float("inf") else max(0.0, wait))
                for key, _ in events:
                    if key.fileobj is self._door:
                        self._admit(selector)
                    else:
                        self._hear(selector, key.fileobj, key.data)
                if missing and time.monotonic() > self._arrival:
                    self._lost.extend(missing)
                if len(self._done) == self.size:
                    # Rank 0 last: the process may end with it, and this thread with the process.
                    self._tell_others(None, {"do": "go"})
                    return
                if self._decided():
                    return

    def _admit(self, selector: selectors.BaseSelector) -> None:
        try:
            connection, _ = self._door.accept()
        except OSError:
            return
        connection.setblocking(True)
        connection.settimeout(10.0)
        selector.register(connection, selectors.EVENT_READ, Line(connection))

    def _hear(self, selector: selectors.BaseSelector, where: Any, line: Line) -> None:
        messages = line.receive()
        rank = next((rank for rank, each in self._lines.items() if each is line), None)
        for message in messages or ():
            rank = self._take(rank, line, message)
            if rank is None:
                messages = None
                break
        if messages is None:
            selector.unregister(where)
            line.close()
            if rank is not None:
                del self._lines[rank]
                if rank not in self._failures:
                    self._lost.append(rank)

    def _take(self, rank: int | None, line: Line, message: dict[str, Any]) -> int | None:
        """Carry out what a rank says; give its number, or None when it is none of ours."""
        if rank is None:
            if not hmac.compare_digest(str(message.get("token")).encode(), self.token.encode()):
                return None
            rank = int(message["rank"])
            self._lines[rank], self._names[rank] = line, str(message["name"])
            line.send({"do": "welcome"})
        elif message["say"] == "done":
            self._done.add(rank)
        elif message["say"] == "failed" and rank not in self._failures:
            self._failures[rank] = Failure(message["sentence"], message["code"], message["doubtful"])
            self._deadline = min(self._deadline, time.monotonic() + GRACE)
        return rank

    def _decided(self) -> bool:
        """Whether it is over for all; then everyone has been told."""
        sure = [rank for rank, failure in self._failures.items() if not failure.doubtful]
        if self._lost and not sure:
            rank = self._lost[0]
            living = sorted(set(self._lines) - set(self._lost))
            if living:
                self._end(
                    living[0], 1, {"do": "speak", "text": gone(rank, self._names.get(rank, ""), self.size)}
                )
            return True
        over = len(self._failures) + len(self._lost) == self.size or time.monotonic() > self._deadline
        if not self._failures or not over:
            return False
        cause = (sure or list(self._failures))[0]
        failure = self._failures[cause]
        alike = [each.sentence == failure.sentence for each in self._failures.values()]
        alone = not (len(alike) == self.size and all(alike))
        speaker, speech = cause if alone else 0, {"do": "speak", "alone": alone}
        if speaker not in self._lines:  # it died with its error unsaid, as a library's threads can make it
            speaker = min(self._lines)
            speech = {"do": "speak", "text": f"rank {cause}: {failure.sentence}"}
        self._end(speaker, failure.code, speech)
        return True

    def _end(self, speaker: int, code: int, speech: dict[str, Any]) -> None:
        self._tell_others(speaker, {"do": "be quiet", "code": code})
        self._lines[speaker].send(speech)
        # A launcher that sees one process end kills the others: nobody goes before the user has been told.
        spoken, line = time.monotonic() + LAST_WORDS, self._lines[speaker]
        while (left := spoken - time.monotonic()) > 0:
            line.connection.settimeout(left)
            if line.receive() is None:
                break
        self._tell_others(speaker, {"do": "end"})

    def _tell_others(self, speaker: int | None, message: dict[str, Any]) -> None:
        for rank in sorted(self._lines, reverse=True):
            if rank != speaker:
                self._lines[rank].send(message)


def _door(size: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(("::", 0), family=socket.AF_INET6, backlog=size, dualstack_ipv6=True)
    return socket.create_server(("", 0), backlog=size)


def gone(rank: int, name: str, size: int) -> str:
    """The sentence for a rank that ended without a word."""
    if not name:
        return f"rank {rank} of {size} did not connect within {ARRIVAL:.0f} seconds; see that it was started"
    others = "the other rank ended" if size == 2 else f"the other {size - 1} ranks ended"
    return (
        f"rank {rank} ({name}) was killed or crashed, and {others} with it; if nobody killed it, look whether its "
        f"machine ran out of memory (dmesg)"
    )
