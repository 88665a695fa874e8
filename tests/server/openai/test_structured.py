"""Answers in a form: every spelling of it, through the official SDK where it knows it."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import httpx
import openai
import pytest
from asking import about, post, refusal
from pydantic import BaseModel

from sightline.server.run import Address

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "blue"]},
        "sides": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["colour", "sides"],
    "additionalProperties": False,
}


class Shape(BaseModel):
    colour: Literal["red", "blue"]
    round: bool


def test_the_sdk_parses_an_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model="tiny", messages=about(), response_format=Shape)
    assert isinstance(answer.choices[0].message.parsed, Shape)
    with client.chat.completions.stream(
        model="tiny", messages=about(), response_format=Shape, temperature=1, seed=3
    ) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Shape)


@pytest.mark.parametrize(
    "form",
    [
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": SCHEMA, "strict": True},
            }
        },
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
        {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
        {"guided_json": SCHEMA},
    ],
    ids=["strict", "schema", "structured", "text", "tight", "guided"],
)
def test_an_answer_keeps_to_a_schema(address: Address, form: dict[str, Any]) -> None:
    body = {"messages": about(), "temperature": 1, "seed": 1, "max_tokens": 300, **form}
    choice = post(f"{address.url}/chat/completions", body)["choices"][0]
    value = json.loads(choice["message"]["content"])
    assert value["colour"] in ("red", "blue")
    assert 0 <= value["sides"] <= 9
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"structured_outputs": {"regex": "[ab]{3}c"}}, "[ab]{3}c"),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
        ({"structured_outputs": {"grammar": 'start: "x" "y"+'}}, "xy+"),
        ({"guided_regex": "[0-9]{2}"}, "[0-9]{2}"),
        ({"guided_choice": ["circle", "square"]}, "circle|square"),
        ({"guided_grammar": 'root ::= "a" | "b"'}, "[ab]"),
    ],
)
def test_other_forms(address: Address, form: dict[str, Any], pattern: str) -> None:
    settings = {"temperature": 1, "seed": 2, "max_tokens": 12, **form}
    answer = post(f"{address.url}/chat/completions", {"messages": about(), **settings})
    text = answer["choices"][0]["message"]["content"]
    if answer["choices"][0]["finish_reason"] == "stop":
        assert re.fullmatch(pattern, text)
    plain = post(f"{address.url}/completions", {"prompt": "a shape", **settings})["choices"][0]
    if plain["finish_reason"] == "stop":
        assert re.fullmatch(pattern, plain["text"])


def test_text_and_nothing_leave_answers_free(address: Address) -> None:
    body = {"messages": about(), "temperature": 0, "max_tokens": 5}
    plain = post(f"{address.url}/chat/completions", body)["choices"]
    for form in (
        {"response_format": {"type": "text"}},
        {"response_format": None},
        {"structured_outputs": None},
    ):
        assert post(f"{address.url}/chat/completions", {**body, **form})["choices"] == plain


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": []}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "http://x/a"}}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}},
            "response_format.json_schema.schema",
        ),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": [1]}}, "structured_outputs.choice[0]"),
        ({"structured_outputs": {"grammar": "start:: ("}}, "structured_outputs.grammar"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_json": "{"}, "guided_json"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
    ],
)
def test_wrong_forms_are_named(address: Address, form: dict[str, Any], param: str) -> None:
    body = {"messages": about(), "max_tokens": 3, **form}
    assert refusal(f"{address.url}/chat/completions", body) == (400, param)
    assert refusal(f"{address.url}/completions", {"prompt": "a", **form}) == (400, param)


@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_followed_while_answering_is_the_clients(address: Address, stream: bool) -> None:
    """Only behind the first property's value does it show that the schema is too much."""
    wide = {"type": "object", "properties": {f"p{number}": {"type": "null"} for number in range(900)}}
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "maxLength": 1}, "b": wide},
        "required": ["a", "b"],
    }
    form = {"structured_outputs": {"json": schema, "disable_any_whitespace": True}}
    body = {"messages": about(), "max_tokens": 40, "stream": stream, **form}
    reply = httpx.post(f"{address.url}/chat/completions", json=body, timeout=60)
    assert reply.status_code == (200 if stream else 400), reply.text
    assert "cannot be followed any further: too much may come next" in reply.text
    assert "make it simpler" in reply.text
    assert "invalid_request_error" in reply.text
