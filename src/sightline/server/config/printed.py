"""Settings as a serve.yaml that says what each option means, and that loads to the same settings again."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from sightline.server.settings import ServeSettings, all_options, is_secret

_WIDTH = 110


def as_yaml(settings: ServeSettings) -> str:
    """Every option with its value, under a comment; keys are not shown."""
    lines: list[str] = []
    title = ""
    for group, name, field in all_options():
        if group != title:
            title = group
            lines += ["", f"# {title}", f"# {'-' * len(title)}"]
        lines += [
            "",
            *textwrap.wrap(field.description or "", _WIDTH, initial_indent="# ", subsequent_indent="# "),
        ]
        value = getattr(settings, name)
        if is_secret(field) and value:
            count = f"{len(value)} {'is' if len(value) == 1 else 'are'} set"
            lines.append(f"# {name}: {count} and not shown; better kept in a file, see api_key_file")
        else:
            lines.append(f"{name}: {_text(value)}")
    return "\n".join(lines[1:])


def _text(value: Any) -> str:
    # JSON is YAML: texts in quotes, so that none is taken for a number or a date.
    return json.dumps(value, ensure_ascii=False)
