"""What happens to requests whose clients leave, and to clients whose server fails, is full or stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from asking import about
from starlette.requests import ClientDisconnect

from sightline import LLM, SamplingParams
from sightline.engine.inputs import read_prompt
from sightline.engine.stream import Stream
from sightline.server.errors import RequestError
from sightline.server.limits import Limits
from sightline.server.openai.chat import answer
from sightline.server.openai.fields import ChatRequest
from sightline.server.openai.template import Template
from sightline.server.run import Address, serve_in_background
from sightline.server.service import Service


def wait_until_busy(llm: LLM, requests: int = 1) -> None:
    until = time.monotonic() + 60
    while llm.engine.stats().running < requests:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_client_that_leaves_frees_the_engine(
    address: Address, llm: LLM, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[Stream] = []
    add = llm.engine.add

    def remember(*given: Any, **options: Any) -> Stream:
        streams.append(add(*given, **options))
        return streams[-1]

    monkeypatch.setattr(llm.engine, "add", remember)
    long = {"messages": about(), "max_tokens": 1900, "ignore_eos": True, "temperature": 0}
    for stream in (True, False):
        body = json.dumps({**long, "stream": stream}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection((address.host, address.port)) as raw:
            raw.sendall(head + body)
            wait_until_busy(llm)
        left = streams[-1].result(60)
        assert left.outputs[0].finish_reason == "abort"
        assert len(left.outputs[0].token_ids) < 1900
        client.chat.completions.create(model="tiny", messages=about(), max_tokens=2)
    assert llm.engine.stats().running == 0


def test_many_clients_each_get_their_own_answer(client: openai.OpenAI, llm: LLM) -> None:
    texts = [f"what is {i}?" for i in range(12)]
    expected = {
        text: llm.chat(about(text=text), SamplingParams(temperature=0, max_tokens=6))[0].outputs[0].text
        for text in texts
    }
    found: dict[str, str | None] = {}

    def ask(text: str) -> None:
        answer = client.chat.completions.create(
            model="tiny", messages=about(text=text), temperature=0, max_tokens=6
        )
        found[text] = answer.choices[0].message.content

    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


@pytest.mark.parametrize("stream", [False, True])
def test_stopping_ends_running_and_waiting_requests(llm: LLM, stream: bool) -> None:
    long = {"messages": about(), "max_tokens": 1900, "ignore_eos": True, "stream": stream}
    replies: list[httpx.Response] = []

    def ask(url: str) -> None:
        replies.append(httpx.post(f"{url}/chat/completions", json=long, timeout=60))

    with serve_in_background(llm) as address:
        threads = [threading.Thread(target=ask, args=(address.url,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until_busy(llm, 3)
    for thread in threads:
        thread.join()
    assert len(replies) == 3
    for reply in replies:
        assert "the server is stopping" in reply.text
        assert reply.status_code == (200 if stream else 503)
    assert llm.engine.stats().running == 0


def test_a_failing_engine_tells_clients_nothing_of_its_inside(
    llm: LLM, address: Address, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(step: Any) -> None:
        raise RuntimeError("secret path /x")

    monkeypatch.setattr(llm.engine._core._computer._runner, "run", fail)
    for stream, status in ((False, 500), (True, 200)):
        body = {"messages": about(), "stream": stream}
        reply = httpx.post(f"{address.url}/chat/completions", json=body, timeout=60)
        assert reply.status_code == status
        assert "the server failed while answering" in reply.text
        assert "secret" not in reply.text
    assert "secret path /x" in caplog.text


def test_a_full_engine_turns_requests_away(tiny_folder: Path) -> None:
    small = LLM(tiny_folder, dtype="fp32", device="cpu", max_num_seqs=1, max_waiting=1)
    long = {"messages": about(), "max_tokens": 1900, "ignore_eos": True}
    with serve_in_background(small) as address:
        url = f"{address.url}/chat/completions"
        options: dict[str, Any] = {"json": long, "timeout": 60}
        threads = [threading.Thread(target=httpx.post, args=(url,), kwargs=options) for _ in range(2)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + 60
        while small.engine.stats().running + small.engine.stats().waiting < 2:
            assert time.monotonic() < until
            time.sleep(0.01)
        refused = httpx.post(url, **options)
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert "max_waiting" in refused.json()["error"]["message"]
    for thread in threads:
        thread.join()


def test_a_dead_engine_shows_in_health(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(tiny_folder, dtype="fp32", device="cpu")

    def die(step: Any) -> None:
        raise SystemExit("secret")

    monkeypatch.setattr(llm.engine._core._computer._runner, "run", die)
    with serve_in_background(llm) as address:
        assert httpx.get(f"{address.root}/health").status_code == 200
        for _ in range(2):
            reply = httpx.post(f"{address.url}/chat/completions", json={"messages": about()}, timeout=60)
            assert reply.status_code == 500
            assert "secret" not in reply.text
        assert httpx.get(f"{address.root}/health").status_code == 503


def test_long_bodies_are_refused(llm: LLM) -> None:
    with serve_in_background(llm, limits=Limits(max_body=1000)) as address:
        url = f"{address.url}/chat/completions"
        assert httpx.post(url, json={"messages": about(text="a"), "max_tokens": 1}).status_code == 200
        assert httpx.post(url, json={"messages": about(text="a" * 1000)}).status_code == 413


def test_a_body_that_stops_coming_is_given_up(llm: LLM) -> None:
    with (
        serve_in_background(llm, limits=Limits(body_seconds=0.2)) as address,
        socket.create_connection((address.host, address.port), timeout=10) as slow,
    ):
        slow.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n{"
        )
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")


def test_a_body_that_drips_is_given_up(llm: LLM) -> None:
    with (
        serve_in_background(llm, limits=Limits(body_seconds=0.5)) as address,
        socket.create_connection((address.host, address.port), timeout=10) as slow,
    ):
        slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n")
        begun = time.monotonic()
        slow.settimeout(0.1)
        while time.monotonic() < begun + 10:
            slow.sendall(b" ")
            with contextlib.suppress(socket.timeout):
                assert slow.recv(100).startswith(b"HTTP/1.1 408 ")
                break
        assert time.monotonic() < begun + 5


@pytest.mark.parametrize("stream", [True, False])
def test_only_streams_are_told_of_each_token(
    address: Address, llm: LLM, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    streams: list[Stream] = []
    add = llm.engine.add

    def remember(*given: Any, **options: Any) -> Stream:
        streams.append(add(*given, **options))
        return streams[-1]

    monkeypatch.setattr(llm.engine, "add", remember)
    chat = {"messages": about(text="a"), "max_tokens": 2}
    for path, body in (
        ("/v1/chat/completions", chat),
        ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 2}),
        ("/generate", {"prompt": "a", "max_tokens": 2}),
        ("/generate", {"inputs": "a"}),
        ("/infer", {"inputs": "a"}),
    ):
        reply = httpx.post(f"{address.root}{path}", json={**body, "stream": stream}, timeout=60)
        assert reply.status_code == 200, reply.text
    assert [one.wants_deltas for one in streams] == [stream] * 6


def test_an_adapter_that_goes_while_media_are_fetched_is_not_found(llm: LLM, address: Address) -> None:
    async def asked() -> None:
        service = Service(llm, ["tiny", "gone"])
        find, calls = service.names.find, []

        def once(name: str | None) -> Any:
            calls.append(name)
            return find(name if len(calls) == 1 else "nothing")

        service.names.find = once  # type: ignore[method-assign]
        await service.submit(read_prompt("a"), SamplingParams(max_tokens=1), model="gone")

    with pytest.raises(RequestError) as refused:
        asyncio.run(asked())
    assert refused.value.status == 404


def test_a_client_that_leaves_while_it_sends_takes_its_body_along(llm: LLM) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"a" * 1000
        raise ClientDisconnect

    async def left() -> list[bytes]:
        try:
            await Service(llm, ["tiny"]).body(SimpleNamespace(stream=pieces))  # type: ignore[arg-type]
        except ClientDisconnect as error:
            frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
            return [bytes(frame.f_locals["body"]) for frame in frames if "body" in frame.f_locals]
        return [b"not left"]

    assert set(asyncio.run(left())) == {b""}


def test_a_refused_request_leaves_no_timer(llm: LLM) -> None:
    bad = {"messages": about("data:image/png;base64,AAAA"), "max_tokens": 1}

    async def refused() -> int:
        service = Service(llm, ["tiny"])
        loop: Any = asyncio.get_running_loop()
        with pytest.raises(RequestError, match="picture"):
            await answer(service, Template(service), ChatRequest.model_validate(bad))
        return sum(not handle.cancelled() for handle in loop._scheduled)

    assert asyncio.run(refused()) == 0


def test_a_client_that_leaves_while_it_sends_is_no_failure(
    address: Address, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_connection((address.host, address.port), timeout=10) as leaving:
        leaving.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n{"
        )
        time.sleep(0.2)
    time.sleep(0.3)
    assert httpx.get(f"{address.root}/health").status_code == 200
    assert not [record for record in caplog.records if record.exc_info]
