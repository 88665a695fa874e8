"""What never reaches the application."""

from __future__ import annotations

import asyncio

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from sightline.server.gate import Gate, is_foreign, local_names


@pytest.mark.parametrize(
    ("headers", "foreign"),
    [
        ({"host": "127.0.0.1:8000"}, False),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}, False),
        ({"host": "127.0.0.1:8000", "origin": "https://evil.example"}, True),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:9000"}, True),
        ({"host": "127.0.0.1:8000", "origin": "null"}, True),
        ({"host": "127.0.0.1:8000", "sec-fetch-site": "cross-site"}, True),
        ({"host": "127.0.0.1:8000", "sec-fetch-site": "same-origin"}, False),
    ],
)
def test_pages_of_other_sites_are_told_by_their_headers(headers: dict[str, str], foreign: bool) -> None:
    assert is_foreign(headers) is foreign


async def _status(client: httpx.AsyncClient, method: str = "POST", **headers: str) -> int:
    return (await client.request(method, "/", headers=headers)).status_code


def test_line_is_bounded_and_opens_again() -> None:
    release = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "POST":
            await release.wait()
        await PlainTextResponse("done")(scope, receive, send)

    async def play() -> None:
        transport = httpx.ASGITransport(app=Gate(slow, most=2))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            waiting = [asyncio.create_task(_status(client)) for _ in range(2)]
            await asyncio.sleep(0.05)
            refused = await client.post("/")
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["type"] == "server_error"
            assert await _status(client, "GET") == 200
            assert await _status(client, origin="https://evil.example") == 403
            release.set()
            assert [await task for task in waiting] == [200, 200]
            assert await _status(client) == 200

    asyncio.run(play())


@pytest.mark.parametrize(
    ("bound", "called", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8000", 200),
        ("127.0.0.1", "localhost:8000", 200),
        ("127.0.0.1", "LOCALHOST", 200),
        ("127.0.0.1", "evil.example:8000", 403),
        ("::1", "[::1]:8000", 200),
        ("::1", "evil.example", 403),
        ("0.0.0.0", "box.example:8000", 200),
    ],
)
def test_local_server_answers_to_local_names_alone(bound: str, called: str, status: int) -> None:
    async def play() -> int:
        transport = httpx.ASGITransport(app=Gate(PlainTextResponse("done"), hosts=local_names(bound)))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await _status(client, host=called)

    assert asyncio.run(play()) == status
