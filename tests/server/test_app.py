"""The HTTP application where no real client can hit the moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from sightline.engine.stream import Stream
from sightline.server.exchange import Events, Exchange


def test_a_client_that_left_before_the_first_event_ends_its_request() -> None:
    """What was received of its leaving may have come between the answer's opening and its first event."""
    aborts: list[int] = []
    stream = Stream("a", lambda: aborts.append(1))

    async def events() -> AsyncIterator[str]:
        yield "data: never asked for\n\n"

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise OSError("nobody is there")

    scope: dict[str, Any] = {"type": "http", "asgi": {"spec_version": "2.4"}}

    async def run() -> None:
        await Events(events(), Exchange(stream, "tiny"))(scope, receive, send)

    with pytest.raises(ClientDisconnect):
        asyncio.run(run())
    assert aborts == [1]
