"""What pydantic finds wrong with settings, as one sentence a mistake: which option, its value, its range."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from sightline.server.options import MIB
from sightline.server.settings import ServeSettings, all_options, is_secret, is_size, other_names

_ENDLESS = 2**60
_RANGES = ("greater_than_equal", "greater_than", "less_than_equal", "less_than")


def explain(error: ValidationError, source: Callable[[str], str]) -> str:
    """All mistakes in one sentence; `source` says of an option where its value comes from, such as "--port"."""
    return "; ".join(dict.fromkeys(_one(dict(item), source) for item in error.errors(include_url=False)))


def _one(item: dict[str, Any], source: Callable[[str], str]) -> str:
    if not item["loc"]:
        return str(item["msg"]).removeprefix("Value error, ")
    name = str(item["loc"][0])
    if item["type"] == "extra_forbidden":
        return f"{source(name)} is not an option{nearest(name)}"
    if item["type"] == "missing":
        return f"{source(name)} is missing"
    rest = "".join(f"[{step}]" for step in item["loc"][1:] if isinstance(step, int))
    secret = is_secret(ServeSettings.model_fields[name])
    instead = "" if secret else f", not {_shown(item['input'])}"
    if item["type"] in _RANGES:
        return f"{source(name)}{rest} must be {range_of(name)}{instead}"
    message = str(item["msg"]).removeprefix("Value error, ").removeprefix("Input should be ")
    if item["type"] == "value_error":
        return f"{source(name)}{rest}: {message}"
    return f"{source(name)}{rest} must be {_plain(message)}{instead}"


def _plain(message: str) -> str:
    words = {
        "a valid integer, unable to parse string as an integer": "a whole number",
        "a valid integer": "a whole number",
        "a valid integer, got a number with a fractional part": "a whole number",
        "a valid number, unable to parse string as a number": "a number",
        "a valid number": "a number",
        "a valid boolean, unable to interpret input": "true or false",
        "a valid boolean": "true or false",
        "a valid string": "a text",
        "a valid list": "a list",
        "a valid dictionary": "a list such as image=4,video=1",
    }
    return words.get(message, message)


def range_of(name: str) -> str:
    """The range of an option's numbers in words: "between 0 and 65535"; empty where there is none."""
    bounds: dict[str, Any] = {}
    field = ServeSettings.model_fields[name]
    pending: list[Any] = [*field.metadata, field.annotation]
    while pending:  # Optional and Annotated hide the bounds one level down
        part = pending.pop()
        for bound in ("ge", "gt", "le", "lt"):
            if getattr(part, bound, None) is not None:
                bounds[bound] = getattr(part, bound)
        pending += [
            *getattr(part, "metadata", ()),
            *getattr(part, "__args__", ()),
            *getattr(part, "__metadata__", ()),
        ]
    if "ge" in bounds and "le" in bounds:
        if bounds["le"] > _ENDLESS:
            return ""
        if bounds["ge"] == bounds["le"]:
            return str(bounds["ge"])
        return f"between {bounds['ge']} and {bounds['le']}"
    if "gt" in bounds and "le" in bounds:
        return f"above {bounds['gt']} and at most {bounds['le']}"
    if "ge" in bounds:
        return f"at least {bounds['ge']}"
    return f"above {bounds['gt']}" if "gt" in bounds else ""


def default_of(name: str) -> str:
    """An option's default as people write it; empty where its description says what is done without it."""
    field = ServeSettings.model_fields[name]
    value = field.default
    if field.is_required() or value is None or value == []:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if is_size(field) and value and value % MIB == 0:
        return f"{value // MIB}MiB"
    return f"{value:g}" if isinstance(value, float) else str(value)


def nearest(name: str) -> str:
    """A suggestion for a name that is none."""
    known = [known for _, option, field in all_options() for known in (option, *other_names(field))]
    close = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
