"""Server-sent events, as OpenAI streams them: one JSON object a `data:` line, and `[DONE]` at the end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from sightline.engine.stream import Stream
from sightline.server.chat import Reply
from sightline.server.errors import RequestError
from sightline.server.worker import Worker

DONE = "data: [DONE]\n\n"
# Proxies must pass events on as they come.
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


async def chat_events(
    reply: Reply, worker: Worker, stream: Stream, *, answers: int, include_usage: bool
) -> AsyncIterator[str]:
    """A role chunk for each answer, text as it comes, why each ended, and the usage where it is asked for."""
    try:
        for index in range(answers):
            yield event(reply.chunk(index, {"role": "assistant", "content": ""}))
        async for delta in worker.deltas(stream):
            if delta.text:
                yield event(reply.chunk(delta.index, {"content": delta.text}))
            if delta.finish_reason is not None:
                yield event(reply.chunk(delta.index, {}, delta.finish_reason))
        if include_usage:
            yield event(reply.usage_chunk(stream.output))
    except RequestError as error:
        # The status line is gone already, so the error travels as an event.
        yield event(error.body)
    finally:
        stream.abort()
    yield DONE
