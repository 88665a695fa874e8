"""Server-sent events, as OpenAI streams them: one JSON object a `data:` line, and `[DONE]` at the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from json.encoder import encode_basestring
from typing import Any, TypeVar

DONE = "data: [DONE]\n\n"
PING = ": ping\n\n"
"""A comment, which clients skip: it tells proxies that the connection is in use."""
PING_SECONDS = 15.0

_T = TypeVar("_T")
# Made once: `json.dumps` makes one anew for every call that sets anything.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
# Line ends of Unicode, at which some clients cut lines.
_BREAKS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def event(value: dict[str, Any]) -> str:
    return data(compact(value))


def data(text: str) -> str:
    """An event of JSON that is written already."""
    return f"data: {text}\n\n"


def compact(value: Any) -> str:
    """JSON on one line, without blanks."""
    return _unbroken(_encode(value))


def quoted(text: str) -> str:
    """A text as JSON, straight from the C function that `compact` comes to in the end."""
    return _unbroken(encode_basestring(text))


def _unbroken(text: str) -> str:
    return text if text.isascii() else text.translate(_BREAKS)


async def patient(
    items: AsyncGenerator[_T, None], *, seconds: float = PING_SECONDS
) -> AsyncIterator[_T | None]:
    """The items, and None whenever the first of them has not come for so long. `items` is closed with this."""
    first = asyncio.ensure_future(anext(items))
    try:
        while not (await asyncio.wait((first,), timeout=seconds))[0]:
            yield None
        yield first.result()
        async for item in items:
            yield item
    except StopAsyncIteration:
        return
    finally:
        if not first.done():
            first.cancel()
            await asyncio.wait((first,))
        await items.aclose()
