"""Two hundred clients at once, many of which leave at some moment: nothing of them stays behind."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import io
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image as Pillow

from sightline import LLM
from sightline.server.limits import Limits
from sightline.server.run import Address, serve_in_background

CLIENTS = 200
MOODS = ("whole", "stream", "stream", "leaves early", "leaves late", "half a body", "nonsense")
# What allocator and interpreter grow by themselves is a few MB; the pictures of one round alone take 40.
_MOST_GROWTH = 24 * 2**20


@pytest.fixture(scope="module")
def llm(tiny_folder: Path) -> LLM:
    return LLM(tiny_folder, dtype="fp32", device="cpu", max_num_seqs=8)


@pytest.fixture(scope="module")
def address(llm: LLM) -> Iterator[Address]:
    with serve_in_background(llm, served_model_name="tiny", limits=Limits(max_open=64)) as address:
        yield address


class Client:
    """One client with its own connection, mood and patience."""

    def __init__(self, address: Address, number: int) -> None:
        self._address = address
        self._random = random.Random(number)
        self._number = number

    async def run(self, outcomes: Counter[str]) -> None:
        await asyncio.sleep(self._random.random() * 0.5)
        reader, writer = await asyncio.open_connection(self._address.host, self._address.port)
        try:
            outcomes[await self._ask(reader, writer)] += 1
        finally:
            if self._random.random() < 0.5:
                writer.transport.abort()  # as a killed process leaves: a reset, no farewell
            writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        mood = self._random.choice(
            ["whole", "stream", "stream", "leaves early", "leaves late", "half a body", "nonsense"]
        )
        stream = mood in ("stream", "leaves late")
        body = b"{" * 100 if mood == "nonsense" else json.dumps(self._body(stream)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + (body[: len(body) // 2] if mood == "half a body" else body))
        await writer.drain()
        if mood in ("leaves early", "half a body"):
            await asyncio.sleep(self._random.choice([0, 0.01, 0.1, 0.3]))
            return "left"
        if mood == "leaves late":
            with contextlib.suppress(asyncio.IncompleteReadError):  # it was turned away
                await reader.readuntil(b"data: ")
            return "left"
        status = int((await reader.readline()).split()[1])
        await reader.readuntil(b"\r\n\r\n")
        if status == 200 and stream:
            await reader.readuntil(b"[DONE]")
        return str(status)

    def _body(self, stream: bool) -> dict[str, object]:
        parts: list[dict[str, object]] = [{"type": "text", "text": f"what is it? {self._number}"}]
        if self._random.random() < 0.5:
            parts.insert(0, {"type": "image_url", "image_url": {"url": self._picture()}})
        return {
            "messages": [{"role": "user", "content": parts}],
            "stream": stream,
            "max_tokens": self._random.randint(1, 24),
            "temperature": 0,
            "n": self._random.choice([1, 1, 2]),
        }

    def _picture(self) -> str:
        picture = Pillow.frombytes("RGB", (112, 112), self._random.randbytes(112 * 112 * 3))
        buffer = io.BytesIO()
        picture.save(buffer, "BMP")
        return "data:image/bmp;base64," + base64.b64encode(buffer.getvalue()).decode()


def round_of(address: Address, first: int) -> Counter[str]:
    outcomes: Counter[str] = Counter()

    async def all_at_once() -> None:
        clients = [Client(address, first + number) for number in range(CLIENTS)]
        await asyncio.wait_for(asyncio.gather(*(client.run(outcomes) for client in clients)), 120)

    asyncio.run(all_at_once())
    return outcomes


def settle(llm: LLM) -> None:
    """Until the engine has seen that everyone is gone."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        stats = llm.engine.stats()
        if not (stats.preparing or stats.waiting or stats.running):
            return
        time.sleep(0.02)
    raise AssertionError(f"requests are left: {llm.engine.stats()}")


def kept() -> tuple[int, int]:
    """Threads, and open files and sockets."""
    return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc")
def test_nothing_of_two_hundred_clients_stays_behind(llm: LLM, address: Address) -> None:
    round_of(address, 0)  # until every cache and every pool of the allocator has its size
    settle(llm)
    gc.collect()
    before, memory = kept(), psutil.Process().memory_info().rss
    outcomes = round_of(address, 1000)
    settle(llm)
    gc.collect()
    until = time.monotonic() + 10  # the last connections are closed by the server's loop
    while any(now > then for now, then in zip(kept(), before, strict=True)) and time.monotonic() < until:
        time.sleep(0.1)
    assert set(outcomes) <= {"200", "400", "503", "left"}, outcomes
    assert outcomes["200"] >= 20, outcomes
    assert outcomes["left"] >= 20, outcomes
    assert outcomes["400"] >= 5, outcomes
    assert llm.engine.stats().blocks_used == 0
    after = kept()
    assert after[0] <= before[0]
    assert after[1] <= before[1]
    assert psutil.Process().memory_info().rss - memory < _MOST_GROWTH
