"""How many media a prompt may bring, as it is written in one text: image=4,video=1, or JSON."""

from __future__ import annotations

import json
from typing import Any

from sightline.errors import UsageError


def read_media_counts(text: str) -> dict[str, Any]:
    """What such a text says, as `EngineSettings.limit_mm_per_prompt` takes and checks it.

    Raises:
        UsageError: it is neither JSON nor a list of image=N and video=N.
    """
    try:
        if text.lstrip().startswith("{"):
            return dict(json.loads(text))
        pairs = [part.split("=") for part in text.split(",")]
        limits = {kind.strip(): int(count) for kind, count in pairs}
        if len(limits) == len(pairs):
            return limits
    except ValueError:  # JSONDecodeError is one
        pass
    raise UsageError(
        f"--limit-mm-per-prompt is {text!r}; write image=4,video=1 or JSON such as "
        '{"image": {"count": 4, "width": 1280, "height": 720}}'
    )
