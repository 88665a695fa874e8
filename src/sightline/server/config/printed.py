"""Settings as a serve.yaml that says what each option means, and that loads to the same settings again."""

from __future__ import annotations

import json
import textwrap
from typing import Any

from pydantic.fields import FieldInfo

from sightline.server.config.explain import default_of, range_of
from sightline.server.settings import ServeSettings, all_options, is_secret, other_names

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


def as_markdown() -> str:
    """The options as tables of documentation, one a group."""
    lines: list[str] = []
    title = ""
    for group, name, field in all_options():
        if group != title:
            title = group
            lines += ["", f"### {title}", "", "| option | meaning | range | default |", "|---|---|---|---|"]
        default = default_of(name)
        cells = [_flag(name, field), field.description or "", range_of(name), default and f"`{default}`"]
        lines.append(f"| {' | '.join(cell.replace('|', ' or ') for cell in cells)} |".replace("  ", " "))
    return "\n".join(lines[1:])


def _flag(name: str, field: FieldInfo) -> str:
    word = name.replace("_", "-")
    names = [f"`--{word}`", *([f"`--no-{word}`"] if field.default is True else [])]
    names += [f"`--{other}`".replace("_", "-") for other in other_names(field)]
    return ", ".join(names)


def _text(value: Any) -> str:
    # JSON is YAML: texts in quotes, so that none is taken for a number or a date.
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    print(as_markdown())
