"""A stream says what the whole answer says, in whole characters, and stays open."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from asking import about, chunks, data_url, joined_chat, post, whole_chat
from scripted_exchange import ScriptedExchange, script

from sightline.engine.stream import Stream
from sightline.server import sse
from sightline.server.errors import RequestError
from sightline.server.run import Address
from sightline.server.sse import compact, patient, quoted

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 1.3, "n": 3},
    {"temperature": 1.0, "stop": ["e", "a r", " "], "min_tokens": 3},
    {"temperature": 1.0, "stop": "t", "include_stop_str_in_output": True},
    {"temperature": 1.0, "logprobs": True, "top_logprobs": 3, "n": 2},
    {"temperature": 1.0, "logprobs": True, "return_tokens_as_token_ids": True},
    {"temperature": 1.0, "logprobs": True, "return_token_ids": True, "stream_interval": 4},
    {"temperature": 0.7, "skip_special_tokens": False, "ignore_eos": True, "repetition_penalty": 1.2},
    {"temperature": 1.0, "structured_outputs": {"regex": "[ab]{5,8}é?"}},
    {"temperature": 1.0, "return_token_ids": True, "stream_options": {"continuous_usage_stats": True}},
    {"temperature": 1.0, "stream_interval": 7, "n": 2},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(settings))
def test_a_stream_joined_is_the_whole_answer(address: Address, settings: dict[str, Any]) -> None:
    url = f"{address.url}/chat/completions"
    for seed in range(2):
        body = {"messages": about(data_url()), "max_tokens": 24, "seed": seed, **settings}
        options = body.pop("stream_options", {})
        post(url, {**body, "max_tokens": 1, "min_tokens": 0})  # so that both find the prompt in the cache
        whole = post(url, body)
        parts = chunks(url, {**body, "stream_options": {**options, "include_usage": True}})
        assert joined_chat(parts) == whole_chat(whole)
        assert parts[-1]["choices"] == []
        assert parts[-1]["usage"] == whole["usage"]
        assert set(parts[-1]["timings"]) == set(whole["timings"])
        assert len({(part["id"], part["created"], part["model"]) for part in parts}) == 1
        if options.get("continuous_usage_stats"):
            counts = [part["usage"]["completion_tokens"] for part in parts]
            assert counts == sorted(counts)
        else:
            assert all(part["usage"] is None for part in parts[:-1])


def test_without_usage_no_chunk_has_it(address: Address) -> None:
    parts = chunks(f"{address.url}/chat/completions", {"messages": about(), "max_tokens": 2})
    assert not any("usage" in part for part in parts)


def test_the_sdk_reads_a_stream_asynchronously(address: Address) -> None:
    async def ask() -> tuple[str, str]:
        client = openai.AsyncOpenAI(base_url=address.url, api_key="none", max_retries=0)
        settings: dict[str, Any] = {"model": "tiny", "messages": about(), "temperature": 0, "max_tokens": 9}
        whole = await client.chat.completions.create(**settings)
        text = ""
        async for chunk in await client.chat.completions.create(**settings, stream=True):
            text += chunk.choices[0].delta.content or ""
        async with client.chat.completions.stream(**settings) as stream:
            final = [event async for event in stream][-1]
        assert final.type == "content.done"
        assert final.content == text
        return text, whole.choices[0].message.content or ""

    streamed, whole = asyncio.run(ask())
    assert streamed == whole != ""


def test_an_error_in_mid_stream_travels_as_an_event(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, ScriptedExchange(["a", "b"], error=RequestError("it failed", status=500)))
    parts = chunks(f"{address.url}/chat/completions", {"messages": about()})
    assert [part["choices"][0]["delta"].get("content") for part in parts[:-1]] == ["", "a", "b"]
    assert parts[-1]["error"] == {"message": "it failed", "type": "server_error", "param": None, "code": None}
    client = openai.OpenAI(base_url=address.url, api_key="none", max_retries=0)
    with pytest.raises(openai.APIError, match="it failed"):
        list(client.chat.completions.create(model="tiny", messages=about(), stream=True))


def test_a_fault_of_the_server_in_mid_stream_tells_nothing_of_its_inside(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = ScriptedExchange(["a"], error=ValueError("secret"))  # type: ignore[arg-type]
    script(monkeypatch, exchange)
    parts = chunks(f"{address.url}/chat/completions", {"messages": about()})
    assert parts[-1]["error"]["message"] == "the server failed while answering"
    assert exchange.aborted


def test_a_long_wait_for_the_first_token_is_bridged_by_comments(
    client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, ScriptedExchange(["a", "b"], wait=0.3))
    monkeypatch.setattr(sse.patient, "__kwdefaults__", {"seconds": 0.1})
    with client.chat.completions.with_streaming_response.create(
        model="tiny", messages=about(), stream=True
    ) as response:
        text = "".join(response.iter_text())
    assert text.count(": ping\n\n") == 2
    assert text.index(": ping") < text.index('"a"')
    stream = client.chat.completions.create(model="tiny", messages=about(), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "ab"


def test_nothing_to_wait_for_is_no_fault() -> None:
    async def nothing() -> AsyncIterator[int]:
        return
        yield 1

    async def read() -> list[int | None]:
        return [item async for item in patient(nothing())]  # type: ignore[arg-type]

    assert asyncio.run(read()) == []


def test_what_waits_is_closed_when_its_reader_leaves() -> None:
    closed = []

    async def slow() -> AsyncIterator[int]:
        try:
            await asyncio.sleep(60)
            yield 1
        finally:
            closed.append(True)

    async def leave() -> None:
        waiting = patient(slow(), seconds=0.01)  # type: ignore[arg-type]
        assert await anext(waiting) is None
        await waiting.aclose()  # type: ignore[attr-defined]

    asyncio.run(leave())
    assert closed == [True]


@pytest.mark.parametrize("text", ["a", 'q"\\', "é好🙂", "a\u2028b\u2029c\x85d\x0b\x1c", "\n\r\x00\x7f"])
def test_events_stand_on_one_line_for_every_reader(text: str) -> None:
    for written in (quoted(text), compact(text)):
        assert json.loads(written) == text
        assert len(written.splitlines()) == 1


@pytest.mark.parametrize("kind", ["chat/completions", "completions"])
def test_the_usage_of_each_chunk_is_counted_and_not_built_anew(
    address: Address, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """To build the whole answer for each token of it would take longer and longer."""
    built: list[int] = []
    output = Stream.output.fget
    assert output is not None
    monkeypatch.setattr(Stream, "output", property(lambda self: built.append(1) or output(self)))
    body: dict[str, Any] = {"messages": about()} if kind[:4] == "chat" else {"prompt": ["a b", "c"]}
    body |= {"max_tokens": 40, "ignore_eos": True, "temperature": 1.0, "seed": 2, "return_token_ids": True}
    options = {"continuous_usage_stats": True, "include_usage": True}
    parts = chunks(f"{address.url}/{kind}", {**body, "stream_options": options})
    assert len(built) < 15
    told = 0
    for part in parts:
        told += sum(len(choice.get("token_ids", ())) for choice in part["choices"])
        assert part["usage"]["completion_tokens"] >= told
        assert part["usage"]["prompt_tokens"] == parts[-1]["usage"]["prompt_tokens"]
    *_, last, end = parts
    assert last["usage"] == end["usage"]
    assert told == end["usage"]["completion_tokens"]
