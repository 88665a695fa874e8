"""Ids of requests, and what the log says of them."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from sightline import LLM
from sightline.data.conversation import Conversation, Message, Text
from sightline.server import access
from sightline.server.run import Address, serve_in_background

SECRET = "the circle is purple"


@pytest.fixture(scope="module")
def address(served_llm: LLM) -> Iterator[Address]:
    with serve_in_background(served_llm, served_model_name="tiny") as address:
        yield address


def ask(address: Address, **options: Any) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": SECRET}], "max_tokens": 3, "ignore_eos": True}
    body |= options.pop("body", {})
    return httpx.post(f"{address.url}/chat/completions", json=body, timeout=60, **options)


def logged(caplog: pytest.LogCaptureFixture, count: int) -> list[str]:
    """The lines of requests; a client may have its answer a moment before the line is written."""
    until = time.monotonic() + 10
    while True:
        lines = [record.getMessage() for record in caplog.records if record.name == "sightline.access"]
        if len(lines) >= count or time.monotonic() > until:
            return lines
        time.sleep(0.01)


@pytest.mark.parametrize("given", ["abc.DEF_1-2", "a" * 128])
def test_a_sane_id_is_given_back(address: Address, given: str) -> None:
    assert ask(address, headers={"x-request-id": given}).headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a" * 129, "a b", "a\tb", "<script>", "a/b", "é".encode("latin-1")])
def test_another_id_is_replaced(address: Address, given: str) -> None:
    answer = httpx.get(f"{address.root}/v1/models", headers={"x-request-id": given})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


def test_errors_have_ids_too(address: Address) -> None:
    assert httpx.get(f"{address.root}/nothing", headers={"x-request-id": "e"}).headers["x-request-id"] == "e"
    assert ask(address, headers={"x-request-id": "e", "origin": "http://x"}).headers["x-request-id"] == "e"


def test_the_same_id_may_be_used_again_and_is_the_engines(
    address: Address, served_llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    add = served_llm.engine.add

    def remember(*given: Any, **options: Any) -> Any:
        seen.append(options["request_id"])
        return add(*given, **options)

    monkeypatch.setattr(served_llm.engine, "add", remember)
    for _ in range(2):
        assert ask(address, headers={"x-request-id": "mine"}).status_code == 200
    assert len(set(seen)) == 2
    assert all(one.startswith("mine-") for one in seen)


def test_a_line_tells_all_but_the_texts(address: Address, caplog: pytest.LogCaptureFixture) -> None:
    time.sleep(0.2)  # of earlier tests
    with caplog.at_level(logging.INFO, "sightline"):
        caplog.clear()
        for stream in (False, True):
            ask(address, headers={"x-request-id": "mine"}, body={"stream": stream})
        ask(address, headers={"x-request-id": "wrong"}, body={"temperature": -1})
        httpx.get(f"{address.root}/health")
        httpx.get(f"{address.root}/a%0Ab?key=hidden")
        lines = logged(caplog, 4)
    pattern = r"mine 127\.0\.0\.1 POST /v1/chat/completions 200 \d+ms in=\d+ out=3 finish=length"
    assert [bool(re.fullmatch(pattern, line)) for line in lines] == [True, True, False, False]
    assert re.fullmatch(r"wrong 127\.0\.0\.1 POST /v1/chat/completions 400 \d+ms", lines[2])
    assert re.search(r" GET /a%0Ab 404 \d+ms$", lines[3])
    assert SECRET not in caplog.text
    assert "hidden" not in caplog.text


def test_texts_are_logged_where_that_is_asked_for(served_llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    picture = "data:image/png;base64,iVBORw0KGgo="
    with (
        serve_in_background(served_llm, settings={"log_prompts": True}) as address,
        caplog.at_level(logging.INFO, "sightline"),
    ):
        answer = ask(address, headers={"x-request-id": "told"}).json()["choices"][0]["message"]["content"]
        parts = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": "two\nlines"}]
        ask(address, body={"messages": [{"role": "user", "content": parts}]})
    line = next(record.getMessage() for record in caplog.records if SECRET in record.getMessage())
    texts = json.loads(line.removeprefix("told "))
    assert texts == {"prompt": [f"user: {SECRET}"], "answers": [answer]}
    assert "iVBORw0KGgo" not in caplog.text


def test_no_log_where_none_is_wanted(served_llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    with (
        serve_in_background(served_llm, settings={"access_log": False}) as address,
        caplog.at_level(logging.DEBUG, "sightline.access"),
    ):
        ask(address)
    assert not [record for record in caplog.records if record.name == "sightline.access"]


def test_answers_do_not_tell_what_serves_them(address: Address) -> None:
    headers = httpx.get(f"{address.root}/health").headers
    assert "server" not in headers
    assert headers["date"].endswith("GMT")


def test_a_failure_tells_the_client_nothing(
    address: Address, served_llm: LLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*given: Any, **options: Any) -> Any:
        raise RuntimeError("secret path /x")

    monkeypatch.setattr(served_llm.engine, "add", fail)
    answer = ask(address)
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "the server failed")
    assert "x-request-id" in answer.headers
    assert caplog.text.count("secret path /x") >= 1


def test_a_timer_that_is_left_keeps_nothing_of_its_request() -> None:
    timers: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        access.remember(SimpleNamespace(output_so_far=None), Conversation([Message("user", [Text(SECRET)])]))  # type: ignore[arg-type]
        timers.append(asyncio.get_running_loop().call_later(600, print))
        timers[0].cancel()
        await Response()(scope, receive, send)

    async def send(message: Any) -> None:
        pass

    asyncio.run(access.Access(app)({"type": "http", "method": "GET", "path": "/", "headers": []}, None, send))  # type: ignore[arg-type]
    record = timers[0]._context[access._current]
    assert not record.exchanges
    assert not record.texts
