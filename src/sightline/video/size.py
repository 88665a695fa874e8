"""Sizes as people write them."""

from __future__ import annotations

import re
from typing import Any

from sightline.errors import UsageError

_FORM = re.compile(r"\s*(\d{1,12})\s*[*x×]\s*(\d{1,12})\s*", re.IGNORECASE)


def parse_size(text: Any) -> tuple[int, int]:
    """Width and height of `832x480` or, as Wan's own command has it, `832*480`.

    Raises:
        UsageError: it is written otherwise.
    """
    found = _FORM.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise UsageError(f"size {text!r} is not WIDTHxHEIGHT, such as 832x480")
    return int(found[1]), int(found[2])
