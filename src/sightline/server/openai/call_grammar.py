"""Grammars that hold a model to sound calls of a request's tools, in llguidance's Lark dialect.

Qwen's tokenizers have a token for each tag, which the models were trained to write; a grammar must name it, because to
llguidance it is not the text that it stands for. Other tokenizers spell the tags.
"""

from __future__ import annotations

import json
from typing import Any

from sightline.engine.sampling.structured.params import StructuredOutputsParams
from sightline.server.openai.tools import CLOSE, OPEN, Tool, Toolbox

# Calls as the models have seen them, {"name": "f", "arguments": {"a": 1}}, without other blanks.
_AS_TRAINED = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_NO_TAG = r"/(.|\n)+/ & ~/(.|\n)*<\/?tool_call>(.|\n)*/"


def has_tags(tokenizer: Any) -> bool:
    """Whether the tags are tokens."""
    added = tokenizer.get_added_vocab()
    return OPEN in added and CLOSE in added


def calls_grammar(toolbox: Toolbox, tags: bool, free: StructuredOutputsParams | None) -> str:
    """Calls with arguments after their schemas; where none is required, or `free` in their place, or amid any text.

    Args:
        tags: as `has_tags`.
        free: a JSON schema or any JSON object.
    """
    if toolbox.required or free is not None:
        calls = r'call ("\n" call)*' if toolbox.parallel else "call"
        rules = [f"start: {calls}" + ("" if free is None else " | free"), _call("", tags)]
    elif tags:
        # Spelled, a tag would not be held to anything, so it may not be.
        rules = ["start: text? (call text?)*", f"text: TEXT\nTEXT: {_NO_TAG}", _call("", tags)]
    else:
        rules = ["start: call* text", "text: /(.|\\n)*/", f"opening[lazy]: /(.|\\n)*{OPEN}/"]
        rules.append(_call("opening", tags))
    rules.append(f"tool: {' | '.join(f'tool{number}' for number in range(len(toolbox.tools)))}")
    rules += [
        f"tool{number}: %json {_one_line(_schema(tool, toolbox.required or tool.strict or free is not None))}"
        for number, tool in enumerate(toolbox.tools)
    ]
    if free is not None:
        rules.append(f"free: %json {free.json if free.kind == 'json' else _one_line({'type': 'object'})}")
    return "\n".join(rules)


def _call(opening: str, tags: bool) -> str:
    opening = opening or (OPEN if tags else f'"{OPEN}"')
    return f'call: {opening} "\\n" tool "\\n" {CLOSE if tags else _quoted(CLOSE)}'


def _quoted(text: str) -> str:
    return f'"{text}"'


def _schema(tool: Tool, held: bool) -> dict[str, Any]:
    parameters = dict(tool.parameters) if held else {}
    parameters.setdefault("type", "object")
    shape: dict[str, Any] = {
        "type": "object",
        "properties": {"name": {"const": tool.name}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
        "x-guidance": _AS_TRAINED,
    }
    # References within the parameters mean their own root.
    for name in ("$defs", "definitions"):
        if name in parameters:
            shape[name] = parameters.pop(name)
    return shape


def _one_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
