"""A server that follows a script: what it sends, when, and how it breaks off; it notes what it was asked and when."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


def sse(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def delta(text: str | None = None, finish: str | None = None, **more: Any) -> bytes:
    content = {} if text is None else {"content": text}
    return sse({"choices": [{"index": 0, "delta": {**content, **more}, "finish_reason": finish}]})


def usage(prompt: int, completion: int, **more: Any) -> bytes:
    return sse({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion}, **more})


DONE = sse(b"[DONE]")


@dataclass
class Answer:
    """Pieces, each sent after its delay in seconds; `cut` closes the connection within the body, `closes` after it."""

    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    status: int = 200
    kind: str = "text/event-stream"
    cut: bool = False
    closes: bool = False


def plain(tokens: int = 3, delay: float = 0.0, prompt: int = 7) -> Answer:
    """A role, so many tokens, a reason, the usage, and the end."""
    pieces = [(0.0, delta("", role="assistant"))]
    pieces += [(delay, delta(f"t{number} ")) for number in range(tokens)]
    return Answer([*pieces, (0.0, delta(finish="stop")), (0.0, usage(prompt, tokens)), (0.0, DONE)])


def as_json(body: Any, status: int = 200) -> Answer:
    return Answer([(0.0, json.dumps(body).encode())], status=status, kind="application/json")


class Scripted:
    """Answers POSTs by `script(body)`; other paths as an OpenAI server would. Counts words at /tokenize where asked."""

    def __init__(self, script: Callable[[dict[str, Any]], Answer], *, tokenizes: bool = False) -> None:
        self.script = script
        self.tokenizes = tokenizes
        self.bodies: list[dict[str, Any]] = []
        self.heads: list[str] = []
        self.sent: list[list[float]] = []  # by request, when each piece was sent
        self.open = self.most_open = self.connections = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.port = 0
        self.hang_up_at = -1  # closes instead of answering the request of this number, from 1
        self.hang_ups = 0
        self.models = as_json({"data": [{"id": "first"}, {"id": "second"}]})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Scripted:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: Any) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(
                    (
                        int(line[15:])
                        for line in head.splitlines()
                        if line.lower().startswith("content-length:")
                    ),
                    0,
                )
                body = json.loads(await reader.readexactly(length)) if length else {}
                self.heads.append(head)
                if len(self.heads) == self.hang_up_at:
                    self.hang_ups += 1
                    return
                if not await self._answer(head.split()[1], body, writer):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        if path.endswith("/completions"):
            self.bodies.append(body)
            self.open += 1
            self.most_open = max(self.most_open, self.open)
            try:
                return await self._send(self.script(body), writer)
            finally:
                self.open -= 1
        if path == "/v1/models":
            return await self._send(self.models, writer)
        if path == "/tokenize" and self.tokenizes:
            return await self._send(as_json({"count": len(body["prompt"].split())}), writer)
        return await self._send(as_json({"error": {"message": "not found"}}, status=404), writer)

    async def _send(self, answer: Answer, writer: asyncio.StreamWriter) -> bool:
        head = (
            f"HTTP/1.1 {answer.status} X\r\nContent-Type: {answer.kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        writer.write(head.encode())
        times: list[float] = []
        self.sent.append(times)
        for delay, piece in answer.pieces:
            if delay:
                await writer.drain()
                await asyncio.sleep(delay)
            times.append(time.perf_counter())
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if answer.cut:
            writer.close()
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return not answer.closes
