"""What every dialect does with a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from PIL import Image as Pillow

from sightline import LLM, SamplingParams
from sightline.data.conversation import Conversation, Image, Message, Text
from sightline.server.errors import RequestError
from sightline.server.exchange import Exchange
from sightline.server.service import Service


def ask(*texts: str) -> Conversation:
    return Conversation([Message("user", [Image(Pillow.new("RGB", (64, 64))), *map(Text, texts)])])


class Holding:
    """A fetcher that knows whether its media are wanted."""

    def __init__(self) -> None:
        self.held = 0

    @asynccontextmanager
    async def resolved(self, conversation: Conversation, **options: Any) -> AsyncIterator[Conversation]:
        self.held += 1
        try:
            yield conversation
        finally:
            self.held -= 1


def test_media_count_until_the_engine_has_opened_them(
    served_llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetcher, held = Holding(), []
    prepare = served_llm.engine._preparer.prepare

    def watched(*given: Any, **options: Any) -> Any:
        held.append(fetcher.held)
        return prepare(*given, **options)

    monkeypatch.setattr(served_llm.engine._preparer, "prepare", watched)

    async def run() -> None:
        service = Service(served_llm, ["tiny"], fetcher=fetcher)
        exchange = await service.submit(ask("what?"), SamplingParams(max_tokens=2))
        assert fetcher.held == 0
        await exchange.finished()
        with pytest.raises(RequestError):
            await service.submit(ask("what?"), SamplingParams(max_tokens=2, allowed_token_ids=[10**9]))
        assert fetcher.held == 0

    asyncio.run(run())
    assert held == [1]


def test_the_engine_keeps_no_file_of_a_prepared_request(served_llm: LLM) -> None:
    async def run() -> None:
        service = Service(served_llm, ["tiny"])
        exchange = await service.submit(ask("what?"), SamplingParams(max_tokens=200, ignore_eos=True))
        (job,) = served_llm.engine._jobs.values()
        assert not job.prompt.media.images
        exchange.abort()
        assert (await exchange.stream.finished()).prompt_token_ids

    asyncio.run(run())


def test_settings_that_forbid_every_token_are_the_clients_fault(
    served_llm: LLM, caplog: pytest.LogCaptureFixture
) -> None:
    params = SamplingParams(max_tokens=3, structured_outputs={"choice": ["a"]}, allowed_token_ids=[9])

    async def run() -> None:
        for read in (finished, deltas):
            exchange = await Service(served_llm, ["tiny"]).submit(ask("what?"), params)
            with pytest.raises(RequestError, match="no token may come next") as caught:
                await read(exchange)
            assert caught.value.status == 400

    asyncio.run(run())
    assert caplog.text == ""  # nothing that an operator could do


async def finished(exchange: Exchange) -> None:
    await exchange.finished()


async def deltas(exchange: Exchange) -> None:
    async for _ in exchange.deltas():
        pass
