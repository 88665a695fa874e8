"""JSON as MindIE's documents write it: with // and /* */ comments, and a comma after the last entry."""

from __future__ import annotations

import json
import re
from typing import Any

from sightline.errors import UsageError

# A string, or what stands between strings and is no JSON. Strings come first, so nothing inside of one is touched.
_TOKENS = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_TRAILING = re.compile(r'"(?:\\.|[^"\\\n])*"|,(?=\s*[}\]])', re.DOTALL)


def without_comments(text: str) -> str:
    """The text with spaces in the place of comments, so that lines and columns stay what they were."""
    return _TOKENS.sub(_blank, text)


def read_jsonc(text: str, source: object) -> Any:
    """What the text holds.

    Raises:
        UsageError: it is no JSON, with the line and column; a name stands twice in one object.
    """
    plain = _TRAILING.sub(_blank, without_comments(text))
    try:
        return json.loads(plain, object_pairs_hook=lambda pairs: _unique(pairs, source))
    except json.JSONDecodeError as error:
        raise UsageError(f"{source}:{error.lineno}:{error.colno} is not valid JSON: {error.msg}") from error
    except RecursionError as error:
        raise UsageError(f"{source} is nested too deep to be a configuration") from error


def _blank(match: re.Match[str]) -> str:
    found = match[0]
    return found if found.startswith('"') else re.sub(r"[^\n]", " ", found)


def _unique(pairs: list[tuple[str, Any]], source: object) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise UsageError(f"{source}: {name} stands twice in one object")
        found[name] = value
    return found
