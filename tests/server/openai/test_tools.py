"""Tools: what the model is shown, and what clients get of its calls, through the official SDK."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from asking import about, chunks, joined_chat, post, refusal, whole_chat
from scripted_exchange import ScriptedExchange, script

from sightline import LLM
from sightline.data.conversation import Conversation, Message, Text
from sightline.server.limits import Limits
from sightline.server.openai.messages import conversation_of
from sightline.server.openai.parts import PartReader
from sightline.server.openai.tools import read_tools
from sightline.server.run import Address

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"enum": ["a", "b"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 5},
            },
            "required": ["place", "days"],
            "additionalProperties": False,
        },
    },
}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "time"}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "a", "days": 2}}\n</tool_call>'


def shown(messages: list[dict[str, Any]], llm: LLM, tools: list[Any], default: str = "") -> str:
    """The prompt's text."""
    parts = PartReader.of(llm.model.processor.vision, False, None, None)
    conversation = read_tools(tools, None, None).shown_in(conversation_of(messages, parts, Limits()), default)
    return str(llm.model.processor.prompt.render(conversation.messages, generate=True))


def test_the_model_is_shown_what_it_was_trained_on(llm: LLM) -> None:
    """The text that the template of Qwen2.5's language models makes of the same conversation."""
    call = {"id": "1", "type": "function", "function": {"name": "time", "arguments": '{"zone": "utc"}'}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": "Let me look.", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "noon"},
        {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "late"}]},
        {"role": "assistant", "content": None, "tool_calls": [call, call]},
        {"role": "tool", "tool_call_id": "3", "content": "one"},
    ]
    assert shown(messages, llm, [TIME]) == (
        "<|im_start|>system\nBe brief.\n\n# Tools\n\n"
        "You may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        '{"type": "function", "function": {"name": "time", "description": "", '
        '"parameters": {"type": "object", "properties": {}}}}\n</tools>\n\n'
        "For each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nWhat time is it?<|im_end|>\n"
        '<|im_start|>assistant\nLet me look.\n<tool_call>\n{"name": "time", "arguments": {"zone": "utc"}}\n'
        "</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\nnoon\n</tool_response>\n"
        "<tool_response>\nlate\n</tool_response><|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "time", "arguments": {"zone": "utc"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "time", "arguments": {"zone": "utc"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\none\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_templates_own_system_prompt_is_kept() -> None:
    toolbox = read_tools([TIME], None, None)
    found = toolbox.shown_in(Conversation([Message("user", [Text("a")])]), "You help.")
    assert found.messages[0].text.startswith("You help.\n\n# Tools\n\nYou may")
    assert read_tools([TIME], "none", None).shown_in(found, "") is found


@pytest.mark.parametrize("cut", [1, 3, 1000])
@pytest.mark.parametrize(
    ("answer", "content", "calls", "reason"),
    [
        (CALL, None, 1, "tool_calls"),
        (f"I look.\n{CALL}\n{CALL}", "I look.", 2, "tool_calls"),
        ("no call <b>", "no call <b>", 0, "stop"),
        ("<tool_call>{]</tool_call>", "<tool_call>{]</tool_call>", 0, "stop"),
    ],
)
def test_calls_of_an_answer(
    answer: str,
    content: str | None,
    calls: int,
    reason: str,
    cut: int,
    client: openai.OpenAI,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pieces = [answer[start : start + cut] for start in range(0, len(answer), cut)]
    script(monkeypatch, ScriptedExchange(pieces))
    settings: dict[str, Any] = {"model": "tiny", "messages": about(), "tools": [WEATHER]}
    choice = client.chat.completions.create(**settings).choices[0]
    assert (choice.message.content, choice.finish_reason) == (content, reason)
    for call in choice.message.tool_calls or []:
        assert call.type == "function"
        assert call.id.startswith("call_")
        assert (call.function.name, json.loads(call.function.arguments)) == (
            "weather",
            {"place": "a", "days": 2},
        )
    assert len(choice.message.tool_calls or []) == calls
    with client.chat.completions.stream(**settings) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion().choices[0]
    assert (final.message.content or None, final.finish_reason) == (content, reason)
    assert [one.function.arguments for one in final.message.tool_calls or []] == [
        one.function.arguments for one in choice.message.tool_calls or []
    ]


def test_a_call_streams_with_its_name_first(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, ScriptedExchange(list(CALL)))
    parts = chunks(f"{address.url}/chat/completions", {"messages": about(), "tools": [WEATHER]})
    deltas = [choice["delta"] for part in parts for choice in part["choices"]]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert {key: value for key, value in calls[0].items() if key != "id"} == {
        "index": 0,
        "type": "function",
        "function": {"name": "weather", "arguments": ""},
    }
    assert all(set(call) == {"index", "function"} for call in calls[1:])
    assert not any("content" in delta for delta in deltas[1:])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}], ids=["required", "named"]
)
def test_a_call_that_is_required_comes_and_keeps_to_its_schema(
    address: Address, choice: Any, stream: bool
) -> None:
    body = {
        "messages": about(),
        "tools": [WEATHER] if choice == "required" else [TIME, WEATHER],
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "temperature": 1.0,
        "max_tokens": 200,
    }
    url = f"{address.url}/chat/completions"
    for seed in range(2):
        whole = whole_chat(post(url, {**body, "seed": seed}))
        assert joined_chat(chunks(url, {**body, "seed": seed})) == whole if stream else True
        (name, arguments), *more = whole[0]["calls"]
        assert (more, whole[0]["content"], whole[0]["finish_reason"]) == ([], "", "tool_calls")
        value = json.loads(arguments)
        assert (name, set(value)) == ("weather", {"place", "days"})
        assert value["place"] in "ab"
        assert 1 <= value["days"] <= 5


def test_one_call_is_enough_where_they_are_not_parallel(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = script(monkeypatch, ScriptedExchange([CALL.removesuffix("</tool_call>")]))
    body = {"messages": about(), "tools": [WEATHER], "parallel_tool_calls": False, "stop": ["x"]}
    answer = post(f"{address.url}/chat/completions", body)
    assert len(answer["choices"][0]["message"]["tool_calls"]) == 1
    assert asked[0][1].stops == ("x", "</tool_call>")


def test_with_tools_a_schema_leaves_room_for_calls(address: Address, llm: LLM) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": [1, 2]}}}
    body = {"messages": about(), "tools": [WEATHER], "parallel_tool_calls": False, "response_format": form}
    url = f"{address.url}/chat/completions"
    token = llm.get_tokenizer().encode("<", add_special_tokens=False)[0]
    for bias, reason in ((-100, "stop"), (100, "tool_calls")):
        body |= {"logit_bias": {str(token): bias}, "max_tokens": 200}
        (choice,) = whole_chat(post(url, body))
        assert choice["finish_reason"] == reason
        assert choice["content"] in (("1", "2") if reason == "stop" else ("",))
        assert joined_chat(chunks(url, {**body, "seed": 1})) == whole_chat(post(url, {**body, "seed": 1}))


def test_a_parsed_tool_call_of_the_sdk(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    from pydantic import BaseModel

    class weather(BaseModel):  # the SDK takes the class's name
        place: str
        days: int

    script(monkeypatch, ScriptedExchange([CALL]))
    answer = client.chat.completions.parse(
        model="tiny", messages=about(), tools=[openai.pydantic_function_tool(weather)]
    )
    calls = answer.choices[0].message.tool_calls or []
    assert [call.function.parsed_arguments for call in calls] == [weather(place="a", days=2)]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools[0]"),
        ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools[0]"),
        ({"tools": ["weather"]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "description": 1}}]},
            "tools[0].function.description",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"a": "b" * 70_000}}}]},
            "tools[0].function.parameters",
        ),
        ({"tools": [TIME, TIME]}, "tools"),
        ({"tools": [TIME] * 129}, "tools"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "description": "<|im_end|>"}}]},
            "tools",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "any"}, "tool_choice"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "other"}}, "tools": [TIME]},
            "tool_choice",
        ),
        ({"tool_choice": {"type": "function"}, "tools": [TIME]}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}, "tools": [TIME]}, "tool_choice"),
        ({"tools": [TIME], "parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"tools": [TIME], "structured_outputs": {"regex": "a"}}, "structured_outputs.regex"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [1]}]}, "messages[0].tool_calls"),
        (
            {"messages": [*about(), {"role": "assistant", "tool_calls": [{"function": 1}]}]},
            "messages[1].tool_calls[0].function",
        ),
        (
            {"messages": [*about(), {"role": "assistant", "tool_calls": [{"function": {"name": ""}}]}]},
            "messages[1].tool_calls[0].function.name",
        ),
    ],
)
def test_wrong_tools_are_named(address: Address, change: dict[str, Any], param: str) -> None:
    assert refusal(f"{address.url}/chat/completions", {"messages": about(), **change}) == (400, param)


def test_deep_schemas_are_refused(address: Address) -> None:
    schema: dict[str, Any] = {}
    for _ in range(60):
        schema = {"properties": {"a": schema}}
    tool = {"type": "function", "function": {"name": "a", "parameters": schema}}
    url = f"{address.url}/chat/completions"
    assert refusal(url, {"messages": about(), "tools": [tool]}) == (400, "tools[0].function.parameters")
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert refusal(url, {"messages": about(), "response_format": form}) == (
        400,
        "response_format.json_schema.schema",
    )


def test_allowed_tools_are_the_only_ones_shown(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = script(monkeypatch, ScriptedExchange(["a"]))
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "time"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    post(
        f"{address.url}/chat/completions",
        {"messages": about(), "tools": [WEATHER, TIME], "tool_choice": choice},
    )
    system = asked[0][0].messages[0].text
    assert '"time"' in system
    assert "weather" not in system


STRICT: dict[str, Any] = {"type": "function", "function": {**WEATHER["function"], "strict": True}}


@pytest.mark.parametrize("tags", [False, True], ids=["spelled", "tokens"])
@pytest.mark.parametrize(
    ("answer", "sound"),
    [
        ("no call at all", True),
        (f"I look. {CALL}\n{CALL}\nafter", True),
        ('<tool_call>\n{"name": "time", "arguments": {"any": [1]}}\n</tool_call>', True),
        ('<tool_call>\n{"name": "weather", "arguments": {"place": "c"', False),
        ('a <tool_call>\n{"name": "other"', False),
        ("<tool_call> is a tag", False),
    ],
)
def test_strict_tools_hold_the_calls_and_leave_the_text_free(answer: str, sound: bool, tags: bool) -> None:
    """The grammar itself, for a tokenizer that spells the tags and for one that has them as tokens, as Qwen's have."""
    import copy

    from llguidance import LLMatcher
    from llguidance.hf import from_tokenizer
    from tiny import make_tokenizer

    from sightline.server.openai.call_grammar import calls_grammar, has_tags

    tokenizer = copy.deepcopy(make_tokenizer())
    if tags:
        tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    assert has_tags(tokenizer) is tags
    for tools, grammar_of in (([STRICT, TIME], "auto"), ([STRICT, TIME], "required")):
        toolbox = read_tools(tools, grammar_of, None)
        matcher = LLMatcher(from_tokenizer(tokenizer), calls_grammar(toolbox, tags, None))
        assert matcher.get_error() == ""
        ids = tokenizer.encode(answer, add_special_tokens=False)
        taken = matcher.try_consume_tokens(ids)
        if grammar_of == "auto":
            assert (taken == len(ids)) is sound
            assert not sound or matcher.is_accepting()
        else:
            assert (taken == len(ids)) is (sound and answer.startswith("<tool_call>"))


def test_a_strict_call_streams_as_it_grows(address: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = script(monkeypatch, ScriptedExchange(list(f"I look.\n{CALL}")))
    body = {"messages": about(), "tools": [STRICT, TIME]}
    parts = chunks(f"{address.url}/chat/completions", body)
    assert asked[0][1].structured_outputs.kind == "grammar"
    (joined,) = joined_chat(parts)
    (whole,) = whole_chat(post(f"{address.url}/chat/completions", body))
    assert (joined["content"], joined["calls"]) == (whole["content"], whole["calls"])
    calls = [call for part in parts for one in part["choices"] for call in one["delta"].get("tool_calls", ())]
    assert calls[0]["function"] == {"name": "weather", "arguments": ""}
    assert len(calls) > 10
    assert "".join(call["function"]["arguments"] for call in calls) == '{"place": "a", "days": 2}'
