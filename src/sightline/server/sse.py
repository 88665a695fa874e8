"""Server-sent events, as OpenAI streams them: one JSON object a `data:` line, and `[DONE]` at the end."""

from __future__ import annotations

import json
from typing import Any

DONE = "data: [DONE]\n\n"


def event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
