"""What never reaches the application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from sightline.server.app import _handle_errors
from sightline.server.gate import Gate, Traffic, is_foreign, local_names


@pytest.mark.parametrize(
    ("headers", "foreign"),
    [
        ({"host": "127.0.0.1:8000"}, False),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}, False),
        ({"host": "127.0.0.1:8000", "origin": "https://evil.example"}, True),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:9000"}, True),
        ({"host": "127.0.0.1:8000", "origin": "null"}, True),
        ({"host": "127.0.0.1:8000", "origin": ""}, True),
        ({"host": "127.0.0.1:8000", "origin": "http://["}, True),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000/x"}, True),
        ({"host": "127.0.0.1:8000", "sec-fetch-site": "cross-site"}, True),
        ({"host": "127.0.0.1:8000", "sec-fetch-site": "same-origin"}, False),
    ],
)
def test_pages_of_other_sites_are_told_by_their_headers(headers: dict[str, str], foreign: bool) -> None:
    assert is_foreign(headers) is foreign


async def _status(client: httpx.AsyncClient, method: str = "POST", path: str = "/", **headers: str) -> int:
    return (await client.request(method, path, headers=headers)).status_code


def through(gate: Gate, **asked: str) -> int:
    """The status that one request gets through a gate."""

    async def play() -> int:
        transport = httpx.ASGITransport(app=gate)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await _status(client, **asked)

    return asyncio.run(play())


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
            refused = await client.post("/v1/completions")
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
    gate = Gate(PlainTextResponse("done"), hosts=local_names(bound))
    assert through(gate, host=called) == status
    # A page that was pointed at this machine may not read what others asked either, but probes use any name.
    assert through(gate, method="GET", path="/v1/models", host=called) == status
    assert through(gate, method="GET", path="/health", host=called) == 200


@pytest.mark.parametrize(
    ("origins", "origin", "status"),
    [
        ((), "https://friend.example", 403),
        (("https://friend.example",), "https://friend.example", 200),
        (("https://friend.example",), "https://evil.example", 403),
        (("https://friend.example",), "http://friend.example", 403),
        (("*",), "https://evil.example", 200),
    ],
)
def test_allowed_sites_pass(origins: tuple[str, ...], origin: str, status: int) -> None:
    gate = Gate(PlainTextResponse("done"), origins=frozenset(origins))
    asked = {"origin": origin, "sec-fetch-site": "cross-site"}
    assert through(gate, **asked) == status


def test_an_image_on_another_site_cannot_send_a_get() -> None:
    gate = Gate(PlainTextResponse("done"))
    assert through(gate, method="GET", path="/stopService", **{"sec-fetch-site": "cross-site"}) == 403
    # A link to the page leads there.
    assert through(gate, method="GET", path="/", **{"sec-fetch-site": "cross-site"}) == 200


def test_a_closed_gate_says_so_and_counts() -> None:
    traffic = Traffic()
    gate = Gate(PlainTextResponse("done"), traffic=traffic, closed=lambda: True)
    assert through(gate) == 503
    assert through(gate, origin="https://evil.example") == 403
    assert through(gate, method="GET", path="/v1/models") == 200
    assert traffic.turned_away == {"stopping": 1, "foreign": 1}
    assert traffic.open == 0


@pytest.mark.parametrize(("path", "theirs"), [("/generate", True), ("/v1/completions", False)])
def test_refusals_have_the_form_of_the_paths_dialect(path: str, theirs: bool) -> None:
    async def play() -> httpx.Response:
        transport = httpx.ASGITransport(app=Gate(PlainTextResponse("done"), closed=lambda: True))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            return await client.post(path)

    answer = asyncio.run(play())
    assert answer.headers["retry-after"] == "1"
    assert ("error_type" in answer.json()) is theirs


def test_the_bodies_of_all_requests_are_bounded_together_until_their_answers_begin() -> None:
    traffic, begin, release = Traffic(), asyncio.Event(), asyncio.Event()
    app = FastAPI()
    _handle_errors(app)

    async def answer(http: Request) -> StreamingResponse:
        await http.body()

        async def pieces() -> AsyncIterator[str]:
            yield "begun"
            await release.wait()

        await begin.wait()
        return StreamingResponse(pieces())

    for path in ("/v1/completions", "/generate"):
        app.post(path)(answer)

    async def play() -> None:
        transport = httpx.ASGITransport(app=Gate(app, traffic=traffic, most_held=100))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            first = asyncio.create_task(client.post("/generate", content=b"x" * 60))
            await asyncio.sleep(0.05)
            assert traffic.held == 60
            for path, error in (("/v1/completions", "type"), ("/generate", "error_type")):
                refused = await client.post(path, content=b"x" * 41)
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
                told = refused.json()
                assert error in (told if path == "/generate" else told["error"])
            assert (traffic.held, traffic.open, dict(traffic.turned_away)) == (60, 1, {"bodies": 2})
            second = asyncio.create_task(client.post("/generate", content=b"x" * 40))
            await asyncio.sleep(0.05)
            assert traffic.held == 100
            begin.set()
            await asyncio.sleep(0.05)
            assert (traffic.held, traffic.open) == (0, 2)
            release.set()
            assert [(await task).status_code for task in (first, second)] == [200, 200]

    asyncio.run(play())
    assert (traffic.held, traffic.open) == (0, 0)
