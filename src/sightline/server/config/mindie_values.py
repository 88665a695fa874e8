"""Single values of MindIE's config.json: what each may be, and those that are more than a number or a text."""

from __future__ import annotations

import json
from typing import Any

from sightline.errors import UsageError
from sightline.server.config.mindie_fields import Field

_WORDS = {"whole": "a whole number", "number": "a number", "text": "a text", "truth": "true or false"}
_LEVELS = {"verbose": "debug", "debug": "debug", "info": "info", "warn": "warning", "warning": "warning"}
_LEVELS |= {"error": "error", "critical": "error", "fatal": "error"}


def check(place: str, value: Any, field: Field) -> None:
    """Raises UsageError, with the field and its range, where the value is impossible."""
    if field.kind in ("any", "texts"):
        return
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = {
        "whole": isinstance(value, int) and numeric,
        "number": numeric,
        "text": isinstance(value, str),
        "truth": isinstance(value, bool),
    }[field.kind]
    bounds = _bounds(field)
    if not fits:
        raise UsageError(f"{place} must be {_WORDS[field.kind]}{bounds and ' ' + bounds}, not {value!r}")
    if (field.least is not None and value < field.least) or (field.most is not None and value > field.most):
        raise UsageError(f"{place} must be {bounds}, not {value}")


def _bounds(field: Field) -> str:
    if field.least is None:
        return ""
    return f"at least {field.least}" if field.most is None else f"between {field.least} and {field.most}"


def devices(place: str, value: Any) -> list[int]:
    """npuDeviceIds: [[0, 1]], of the one instance that there may be."""
    inner = value[0] if isinstance(value, list) and len(value) == 1 else None
    numbers = (
        inner if isinstance(inner, list) and all(type(one) is int and one >= 0 for one in inner) else None
    )
    if not numbers or len(set(numbers)) != len(numbers):
        raise UsageError(f"{place} must be one list of different cards such as [[0, 1, 2, 3]], not {value!r}")
    return numbers


def lora_modules(place: str, value: Any) -> list[tuple[str, str]]:
    """LoraModules: names and paths; what an adapter was made for is checked when it is loaded."""
    try:
        return [(_text(one["name"]), _text(one["path"])) for one in value]
    except (TypeError, KeyError) as error:
        raise UsageError(
            f'{place} must be a list of {{"name": NAME, "path": FOLDER}}, not {value!r}'
        ) from error


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or "=" in value:
        raise TypeError
    return value


def plugins(place: str, value: Any) -> list[str]:
    """The kinds that plugin_params, an object written as a text, asks for."""
    try:
        asked = json.loads(value) if isinstance(value, str) else value
        kinds = asked.get("plugin_type") or ""
        return [kind.strip() for kind in kinds.split(",") if kind.strip()]
    except (ValueError, AttributeError) as error:
        raise UsageError(
            f'{place} must be an object in a text, such as "{{\\"plugin_type\\": \\"prefix_cache\\"}}", not {value!r}'
        ) from error


def log_level(place: str, value: str) -> str:
    level = _LEVELS.get(value.lower())
    if level is None:
        raise UsageError(f"{place} must be debug, info, warn, error or critical, not {value!r}")
    return level
