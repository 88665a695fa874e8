"""Server-sent events, as OpenAI streams them: one JSON object a `data:` line, and `[DONE]` at the end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from sightline.engine.job import Delta, Job
from sightline.server.chat import Reply
from sightline.server.errors import RequestError, error_body
from sightline.server.worker import STOPPING

DONE = "data: [DONE]\n\n"
# Proxies must pass events on as they come.
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


async def chat_events(
    reply: Reply, job: Job, deltas: AsyncIterator[Delta], *, include_usage: bool
) -> AsyncIterator[str]:
    """A role chunk for each answer, text as it comes, why each ended, and the usage where it is asked for."""
    try:
        for request in job.requests:
            yield event(reply.chunk(request.index, {"role": "assistant", "content": ""}))
        async for delta in deltas:
            if delta.text:
                yield event(reply.chunk(delta.index, {"content": delta.text}))
            if delta.finish_reason not in (None, "abort"):
                yield event(reply.chunk(delta.index, {}, delta.finish_reason))
        if job.aborted:
            yield event(error_body(STOPPING, status=503))
        elif include_usage:
            yield event(reply.usage_chunk(job.output()))
    except RequestError as error:
        # The status line is gone already, so the error travels as an event.
        yield event(error.body)
    finally:
        job.abort()
    yield DONE
