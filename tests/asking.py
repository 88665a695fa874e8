"""Questions as OpenAI's clients ask them, and streams as they read them."""

from __future__ import annotations

import base64
import io
import json
import time
from typing import Any

import httpx
from PIL import Image as Pillow


def data_url(size: tuple[int, int] = (64, 64), colour: str = "red") -> str:
    buffer = io.BytesIO()
    Pillow.new("RGB", size, colour).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def about(*urls: str, text: str = "what shape is it?") -> list[Any]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """The object of an answer; it must be one."""
    response = httpx.post(url, json=body, timeout=60)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def wait_until_idle(llm: Any) -> None:
    """A request that is given up ends at the engine's next step."""
    until = time.monotonic() + 20
    while (stats := llm.engine.stats()).running + stats.waiting:
        assert time.monotonic() < until
        time.sleep(0.01)


def refusal(url: str, body: Any) -> tuple[int, str | None]:
    """Status and field of an error, whose body must be OpenAI's."""
    response = httpx.post(url, json=body, timeout=60)
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return response.status_code, error["param"]


def chunks(url: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of a stream, whose form is looked at here."""
    response = httpx.post(url, json={**body, "stream": True}, timeout=60)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    return [json.loads(event.removeprefix("data: ")) for event in events[:-2] if not event.startswith(":")]


def joined_chat(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices of a chat stream as the whole answer has them, without what is drawn anew each time."""
    choices: dict[int, dict[str, Any]] = {}
    for part in parts:
        for choice in part["choices"]:
            delta, index = choice["delta"], choice["index"]
            if index not in choices:
                assert delta == {"role": "assistant", "content": ""}
                empty = {"content": "", "calls": [], "logprobs": None, "token_ids": []}
                choices[index] = {"index": index, "finish_reason": None, **empty}
                continue
            found = choices[index]
            assert found["finish_reason"] is None, "nothing comes after the end"
            found["content"] += delta.get("content") or ""
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    assert call["index"] == len(found["calls"])
                    found["calls"].append([call["function"]["name"], ""])
                found["calls"][call["index"]][1] += call["function"]["arguments"]
            if choice["logprobs"] is not None:
                found["logprobs"] = (found["logprobs"] or []) + choice["logprobs"]["content"]
            found["token_ids"] += choice.get("token_ids", [])
            if choice["finish_reason"] is not None:
                assert delta == {}, "why it ended stands in a chunk of its own"
                assert choice["logprobs"] is None
            found["finish_reason"] = choice["finish_reason"]
    return [choices[index] for index in sorted(choices)]


def whole_chat(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices of a whole answer, in the form of `joined_chat`."""
    found = []
    for choice in answer["choices"]:
        message, logprobs = choice["message"], choice["logprobs"]
        calls = [
            [call["function"]["name"], call["function"]["arguments"]]
            for call in message.get("tool_calls", ())
        ]
        found.append(
            {
                "index": choice["index"],
                "finish_reason": choice["finish_reason"],
                "content": message["content"] or "",
                "calls": calls,
                "logprobs": None if logprobs is None else logprobs["content"],
                "token_ids": choice.get("token_ids", []),
            }
        )
    return found
