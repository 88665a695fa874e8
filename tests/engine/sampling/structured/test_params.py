"""What is asked for is checked before anything is compiled."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sightline import SamplingParams, StructuredOutputsParams
from sightline.engine.sampling.params import ParameterError
from sightline.engine.sampling.structured import params as limits


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def endless() -> dict[str, Any]:
    schema: dict[str, Any] = {}
    schema["items"] = schema["contains"] = schema
    return schema


@pytest.mark.parametrize(
    ("given", "name", "words"),
    [
        ({}, "structured_outputs", "exactly one of json, json_object, regex, choice, grammar, but has none"),
        ({"json_object": False}, "structured_outputs", "has none"),
        ({"regex": "a", "choice": ["b"]}, "structured_outputs", "but has regex and choice"),
        ({"json_object": 1}, "structured_outputs.json_object", "True or False"),
        ({"json": 5}, "structured_outputs.json", "an object or True"),
        ({"json": "5"}, "structured_outputs.json", "an object or True"),
        ({"json": "{"}, "structured_outputs.json", "is no JSON"),
        ({"json": {"const": object()}}, "structured_outputs.json", "is no JSON"),
        ({"json": {"const": float("nan")}}, "structured_outputs.json", "is no JSON"),
        ({"json": {"const": "\ud800"}}, "structured_outputs.json", "surrogate"),
        ({"json": nested(limits.MOST_NESTING + 1)}, "structured_outputs.json", "nested more than 120 deep"),
        ({"json": '{"items":' * 5000 + "{}" + "}" * 5000}, "structured_outputs.json", "nested more than"),
        ({"json": endless()}, "structured_outputs.json", "nested more than"),
        (
            {"json": {"const": "x" * limits.MOST_SCHEMA}},
            "structured_outputs.json",
            "above the limit of 262,144",
        ),
        ({"json": " " * (limits.MOST_SCHEMA + 1)}, "structured_outputs.json", "above the limit"),
        (
            {"json": {"$ref": "http://127.0.0.1/a"}},
            "structured_outputs.json",
            "refers to 'http://127.0.0.1/a'",
        ),
        (
            {"json": {"items": [{"$ref": "file:///etc/passwd"}]}},
            "structured_outputs.json",
            "refers to 'file:",
        ),
        ({"regex": ""}, "structured_outputs.regex", "not empty"),
        ({"regex": 3}, "structured_outputs.regex", "must be a text"),
        ({"regex": "\udfff"}, "structured_outputs.regex", "surrogate"),
        ({"regex": "a" * (limits.MOST_REGEX + 1)}, "structured_outputs.regex", "above the limit of 8,192"),
        (
            {"grammar": "a" * (limits.MOST_GRAMMAR + 1)},
            "structured_outputs.grammar",
            "above the limit of 65,536",
        ),
        ({"choice": "red"}, "structured_outputs.choice", "a list of at least one text"),
        ({"choice": []}, "structured_outputs.choice", "at least one"),
        ({"choice": ["a", ""]}, "structured_outputs.choice", "none of them empty"),
        ({"choice": ["a", 1]}, "structured_outputs.choice", "a list of texts"),
        ({"choice": ["a"] * 5000}, "structured_outputs.choice", "5,000 texts, above the limit of 4,096"),
        ({"choice": ["a" * 70_000]}, "structured_outputs.choice", "70,000 characters"),
        ({"choice": ["\ud83d"]}, "structured_outputs.choice", "surrogate"),
        ({"json_object": True, "whitespace_pattern": 3}, "structured_outputs.whitespace_pattern", "a text"),
        (
            {"json_object": True, "whitespace_pattern": " ", "disable_any_whitespace": True},
            "structured_outputs.whitespace_pattern",
            "contradicts",
        ),
        (
            {"json_object": True, "disable_any_whitespace": 2},
            "structured_outputs.disable_any_whitespace",
            "True",
        ),
    ],
)
def test_faults_name_the_field(given: dict[str, Any], name: str, words: str) -> None:
    with pytest.raises(ParameterError) as caught:
        StructuredOutputsParams(**given)
    assert caught.value.name == name
    assert words in str(caught.value)
    assert str(caught.value) == f"{name} {caught.value.fault}"


def test_at_the_limits_they_pass() -> None:
    StructuredOutputsParams(json=nested(limits.MOST_NESTING - 1))
    StructuredOutputsParams(regex="a" * limits.MOST_REGEX)
    StructuredOutputsParams(choice=["a" * limits.MOST_CHOICE_TEXT])
    StructuredOutputsParams(choice=[str(number) for number in range(limits.MOST_CHOICES)])


def test_each_spelling_of_a_schema_is_the_same() -> None:
    schema = {"type": "object", "properties": {"ä": {"$ref": "#/$defs/a"}}, "$defs": {"a": {"const": "x"}}}
    first, second = StructuredOutputsParams(json=schema), StructuredOutputsParams(json=json.dumps(schema))
    assert first == second
    assert hash(first) == hash(second)
    assert json.loads(str(first.json)) == schema
    assert StructuredOutputsParams(json=True).json == "true"


def test_a_reference_among_data_refers_to_nothing() -> None:
    StructuredOutputsParams(json={"const": {"$ref": "http://example.com"}})
    StructuredOutputsParams(json={"properties": {"$ref": {"type": "string"}}})


def test_sampling_params_take_a_mapping() -> None:
    params = SamplingParams(structured_outputs={"choice": ["a", "b", "a"]})  # type: ignore[arg-type]
    assert params.structured_outputs == StructuredOutputsParams(choice=["a", "b"])
    assert hash(params) == hash(SamplingParams(structured_outputs=StructuredOutputsParams(choice=["a", "b"])))
    with pytest.raises(ParameterError, match="structured_outputs has no field 'choices'; it has json"):
        SamplingParams(structured_outputs={"choices": ["a"]})  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="must be StructuredOutputsParams, not str"):
        SamplingParams(structured_outputs="a")  # type: ignore[arg-type]
