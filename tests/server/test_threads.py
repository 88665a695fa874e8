"""What is computed beside the event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from typing import Any

import httpx
import pytest

from sightline import LLM
from sightline.server import lifecycle, listen
from sightline.server.openai import tokenize
from sightline.server.run import serve_in_background
from sightline.server.threads import Threads


def test_calls_wait_their_turn_and_give_what_they_give() -> None:
    running: list[int] = []

    def call(number: int) -> int:
        running.append(1)
        assert len(running) <= 2
        time.sleep(0.01)
        running.pop()
        if number == 3:
            raise ValueError(number)
        return number

    async def play() -> list[Any]:
        threads = Threads(2, "test", RuntimeError)
        calls = (threads.run(lambda number=number: call(number)) for number in range(6))  # type: ignore[misc]
        return await asyncio.gather(*calls, return_exceptions=True)

    found = asyncio.run(play())
    assert isinstance(found.pop(3), ValueError)
    assert found == [0, 1, 2, 4, 5]


def test_the_servers_end_waits_for_no_long_call(served_llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, release = threading.Event(), threading.Event()

    def stuck(*given: Any) -> dict[str, Any]:
        begun.set()
        release.wait(20)
        return {}

    def ask(url: str) -> None:
        with suppress(httpx.HTTPError):
            httpx.post(url, json={"tokens": [1]}, timeout=40)

    monkeypatch.setattr(tokenize, "_text", stuck)
    monkeypatch.setattr(lifecycle, "_CUT_SECONDS", 0.5)
    monkeypatch.setattr(listen, "_UNREAD_SECONDS", 1)
    try:
        with serve_in_background(served_llm) as address:
            client = threading.Thread(target=ask, args=(f"{address.root}/detokenize",))
            client.start()
            assert begun.wait(10)
            ended = time.monotonic()
        assert time.monotonic() - ended < 8
    finally:
        release.set()
        client.join()
