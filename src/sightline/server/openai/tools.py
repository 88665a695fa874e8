"""Tools as Qwen's models were trained on them: Hermes' form, JSON between tags in the text.

The templates of vision-language checkpoints mostly lack this section, so it is written into the messages here. How
answers are read is in `calls`.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sightline.data.conversation import Conversation, Message, Text
from sightline.server.errors import RequestError

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_MOST_TOOLS, _MOST_CALLS = 128, 128
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
MOST_DEPTH, MOST_SCHEMA = 48, 64 * 1024  # of a schema: levels, and characters as JSON

_SECTION = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


@dataclass(frozen=True)
class Tool:
    """`written` is the tool as the model is shown it; with `strict` its calls keep to its schema."""

    name: str
    parameters: Mapping[str, Any]
    written: str
    strict: bool = False


@dataclass(frozen=True)
class Toolbox:
    """The tools of a request.

    Attributes:
        tools: those that may be called.
        required: an answer is a call of one of them.
        parallel: an answer may hold several calls.
    """

    tools: tuple[Tool, ...] = ()
    required: bool = False
    parallel: bool = True

    @property
    def held(self) -> bool:
        """Whether a grammar holds the model to sound calls."""
        return self.required or any(tool.strict for tool in self.tools)

    def __bool__(self) -> bool:
        return bool(self.tools)

    def shown_in(self, conversation: Conversation, default_system: str) -> Conversation:
        """With the tools told in the system message; `default_system` stands there where there is none."""
        if not self.tools:
            return conversation
        section = _SECTION.format(tools="\n".join(tool.written for tool in self.tools))
        messages = list(conversation.messages)
        if messages and messages[0].role == "system":
            first = messages.pop(0)
            system = Message("system", [*first.parts, Text(("\n\n" if first.parts else "") + section)])
        else:
            system = Message(
                "system", [Text(f"{default_system}\n\n{section}" if default_system else section)]
            )
        return Conversation([system, *messages], conversation.origin, conversation.extra)


def read_tools(
    tools: Sequence[Mapping[str, Any]] | None, choice: str | Mapping[str, Any] | None, parallel: bool | None
) -> Toolbox:
    """`tools`, `tool_choice` and `parallel_tool_calls` of a request.

    Raises:
        RequestError: they are not understood, or too many or too large.
    """
    if len(tools or ()) > _MOST_TOOLS:
        raise RequestError(f"tools may hold {_MOST_TOOLS} tools; give fewer", param="tools")
    known = {}
    for number, one in enumerate(tools or ()):
        tool = _tool(one, f"tools[{number}]")
        if tool.name in known:
            raise RequestError(f"tools[{number}] is the second one called {tool.name}", param="tools")
        known[tool.name] = tool
    mode, names = _choice(choice, known)
    if mode == "none":
        return Toolbox()
    chosen = tuple(tool for name, tool in known.items() if names is None or name in names)
    return Toolbox(chosen, required=mode == "required", parallel=parallel is not False)


def _tool(one: Mapping[str, Any], where: str) -> Tool:
    function = one.get("function")
    if one.get("type") != "function" or not isinstance(function, Mapping):
        raise RequestError(f'{where} must be {{"type": "function", "function": {{...}}}}', param=where)
    name = _name(function.get("name"), f"{where}.function.name")
    parameters = function.get("parameters")
    parameters = {"type": "object", "properties": {}} if parameters is None else parameters
    if not isinstance(parameters, Mapping):
        raise RequestError(
            f"{where}.function.parameters must be an object", param=f"{where}.function.parameters"
        )
    description = function.get("description")
    if description is not None and not isinstance(description, str):
        raise RequestError(
            f"{where}.function.description must be a text", param=f"{where}.function.description"
        )
    strict = function.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise RequestError(f"{where}.function.strict must be true or false", param=f"{where}.function.strict")
    shown = {"name": name, "description": description or "", "parameters": parameters}
    check_schema(parameters, f"{where}.function.parameters")
    return Tool(name, parameters, _json({"type": "function", "function": shown}, where), strict is True)


def _choice(
    choice: str | Mapping[str, Any] | None, known: Mapping[str, Tool]
) -> tuple[str, frozenset[str] | None]:
    """ "none", "auto" or "required", and the names to choose from (None: all)."""
    if choice is None or choice in ("none", "auto", "required"):
        if choice == "required" and not known:
            raise RequestError("tool_choice is required, but there are no tools", param="tool_choice")
        return (choice if isinstance(choice, str) else "auto"), None
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        function = choice.get("function")
        names, mode = [function.get("name") if isinstance(function, Mapping) else None], "required"
    elif isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        names, mode = _allowed(choice.get("allowed_tools"))
    else:
        raise RequestError(
            'tool_choice must be none, auto, required or {"type": "function", "function": {"name": ...}}',
            param="tool_choice",
        )
    missing = next((name for name in names if not isinstance(name, str) or name not in known), None)
    if missing is not None or None in names:
        raise RequestError(f"tool_choice names {missing!r}, which is not among tools", param="tool_choice")
    return mode, frozenset(name for name in names if isinstance(name, str))


def _allowed(allowed: Any) -> tuple[list[Any], str]:
    tools = allowed.get("tools") if isinstance(allowed, Mapping) else None
    mode = allowed.get("mode") if isinstance(allowed, Mapping) else None
    if not isinstance(tools, list) or not tools or mode not in ("auto", "required"):
        raise RequestError(
            "tool_choice.allowed_tools must have a mode (auto or required) and tools", param="tool_choice"
        )
    functions = [one.get("function") if isinstance(one, Mapping) else None for one in tools]
    return [one.get("name") if isinstance(one, Mapping) else None for one in functions], str(mode)


def call_text(calls: Sequence[Any], where: str) -> str:
    """The calls of an earlier answer, as the model wrote them.

    Raises:
        RequestError: they are not understood.
    """
    if len(calls) > _MOST_CALLS:
        raise RequestError(f"{where} may hold {_MOST_CALLS} calls", param=where)
    written = []
    for number, call in enumerate(calls):
        place = f"{where}[{number}].function"
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            raise RequestError(f"{place} must be an object with a name and arguments", param=place)
        name = _name(function.get("name"), f"{place}.name")
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            # What a model wrote wrongly, it is shown as it wrote it.
            with contextlib.suppress(ValueError, RecursionError):
                arguments = json.loads(arguments) if arguments.strip() else {}
        check_depth(arguments, f"{place}.arguments")
        text = _json({"name": name, "arguments": {} if arguments is None else arguments}, place)
        written.append(f"{OPEN}\n{text}\n{CLOSE}")
    return "\n".join(written)


def result_text(content: Sequence[Any]) -> list[Any]:
    """What a tool gave back, as parts of a turn of the user."""
    return [Text("<tool_response>\n"), *content, Text("\n</tool_response>")]


def check_schema(schema: Any, where: str) -> None:
    """Raises RequestError where a schema is nested too deep or too long."""
    check_depth(schema, where)
    if len(_json(schema, where)) > MOST_SCHEMA:
        raise RequestError(f"{where} is longer than {MOST_SCHEMA:,} characters as JSON", param=where)


def check_depth(value: Any, where: str) -> None:
    """Raises RequestError where lists and objects are nested deeper than a schema may be."""
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [
            inner
            for one in level
            if isinstance(one, (Mapping, list))
            for inner in (one.values() if isinstance(one, Mapping) else one)
        ]
        if not level:
            return
    raise RequestError(f"{where} is nested deeper than {MOST_DEPTH} levels", param=where)


def _name(name: Any, where: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RequestError(f"{where} must be 1 to 128 letters, digits or any of _ - . :", param=where)
    return name


def _json(value: Any, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise RequestError(f"{where} holds a number that JSON has not", param=where) from error
