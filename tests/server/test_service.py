"""What every dialect's requests have in common, at moments that no real client can hit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from sightline import LLM, SamplingParams
from sightline.data.conversation import Conversation, Image, Message
from sightline.server.errors import RequestError
from sightline.server.limits import Limits
from sightline.server.service import Service


class SlowFetcher:
    """Fetches for ever, and says what became of it."""

    def __init__(self) -> None:
        self.ended = False

    @asynccontextmanager
    async def resolved(self, conversation: Conversation, **options: Any) -> AsyncIterator[Conversation]:
        try:
            await asyncio.sleep(60)
            yield conversation
        finally:
            self.ended = True


def test_fetching_takes_of_a_requests_time(served_llm: LLM) -> None:
    fetcher = SlowFetcher()
    service = Service(served_llm, ["tiny"], limits=Limits(request_seconds=0.05), fetcher=fetcher)
    conversation = Conversation([Message("user", [Image("https://example.org/a.png")])])
    with pytest.raises(RequestError) as refused:
        asyncio.run(service.submit(conversation, SamplingParams()))
    assert refused.value.status == 504
    assert fetcher.ended
    assert service.worker.open == 0
