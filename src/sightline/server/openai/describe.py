"""What the OpenAPI document says about requests and answers of the OpenAI dialect."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

_INT, _TEXT = {"type": "integer"}, {"type": "string"}
_OR_NULL = {"type": ["object", "null"]}

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}
_USAGE = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "properties": {
        "prompt_tokens": _INT,
        "completion_tokens": _INT,
        "total_tokens": _INT,
        "prompt_tokens_details": {
            "type": "object",
            "properties": {"cached_tokens": _INT, "vision_tokens": _INT},
        },
    },
}


# What the settings may be; they are checked where they are made (`sampling`, and the engine's SamplingParams).
_RANGES: dict[str, dict[str, float]] = {
    "temperature": {"minimum": 0, "maximum": 100},
    "top_p": {"exclusiveMinimum": 0, "maximum": 1},
    "top_k": {"minimum": -1},
    "min_p": {"minimum": 0, "maximum": 1},
    "repetition_penalty": {"exclusiveMinimum": 0, "maximum": 100},
    "presence_penalty": {"minimum": -2, "maximum": 2},
    "frequency_penalty": {"minimum": -2, "maximum": 2},
    "length_penalty": {"minimum": 1, "maximum": 1},
    "n": {"minimum": 1},
    "best_of": {"minimum": 1},
    "max_tokens": {"minimum": 0},
    "max_completion_tokens": {"minimum": 1},
    "min_tokens": {"minimum": 0},
    "seed": {"minimum": -(2**63), "maximum": 2**63 - 1},
    "top_logprobs": {"minimum": 0, "maximum": 20},
    "prompt_logprobs": {"minimum": 0, "maximum": 20},
    "truncate_prompt_tokens": {"minimum": -1},
    "stream_interval": {"minimum": 1},
    "priority": {"minimum": -(2**31), "maximum": 2**31},
}


def _answer(kind: str, choice: dict[str, Any]) -> dict[str, Any]:
    choice = {"index": _INT, "logprobs": _OR_NULL, "finish_reason": _TEXT, **choice}
    return {
        "type": "object",
        "required": ["id", "object", "created", "model", "choices", "usage", "timings"],
        "properties": {
            "id": _TEXT,
            "object": {"const": kind},
            "created": _INT,
            "model": _TEXT,
            "choices": {
                "type": "array",
                "items": {"type": "object", "required": list(choice), "properties": choice},
            },
            "usage": _USAGE,
            "timings": {"type": "object", "additionalProperties": {"type": ["number", "null"]}},
        },
    }


_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"const": "assistant"},
        "content": {"type": ["string", "null"]},
        "tool_calls": {"type": "array"},
    },
}
CHAT_ANSWER = _answer("chat.completion", {"message": _MESSAGE})
COMPLETION_ANSWER = _answer("text_completion", {"text": _TEXT})
TOKENIZE_ANSWER = {
    "type": "object",
    "required": ["count", "max_model_len", "tokens", "token_strs"],
    "properties": {
        "count": _INT,
        "max_model_len": _INT,
        "tokens": {"type": "array", "items": _INT},
        "token_strs": {"type": ["array", "null"], "items": _TEXT},
    },
}
DETOKENIZE_ANSWER = {"type": "object", "required": ["prompt"], "properties": {"prompt": _TEXT}}
_MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": _TEXT,
        "object": {"const": "model"},
        "created": _INT,
        "owned_by": _TEXT,
        "max_model_len": _INT,
    },
}
MODEL_ANSWER = _MODEL
MODELS_ANSWER = {
    "type": "object",
    "required": ["object", "data"],
    "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _MODEL}},
}


def described(
    request: type[BaseModel] | None, answer: dict[str, Any], *, streams: bool = False
) -> dict[str, Any]:
    """What a route is told about its body and its answers."""
    content: dict[str, Any] = {"application/json": {"schema": answer}}
    if streams:
        content["text/event-stream"] = {"schema": _TEXT}
    error = {"description": "an error", "content": {"application/json": {"schema": ERROR}}}
    route: dict[str, Any] = {
        "responses": {
            200: {"description": "an answer", "content": content},
            "4XX": error,
            "5XX": error,
        }
    }
    if request is not None:
        body = {"required": True, "content": {"application/json": {"schema": _whole(request)}}}
        route["openapi_extra"] = {"requestBody": body}
    return route


def _whole(request: type[BaseModel]) -> dict[str, Any]:
    """A request's schema; "#/$defs" would point outside of it in an OpenAPI document, so parts are put in place."""
    schema = request.model_json_schema()
    parts = schema.pop("$defs", {})
    for name, field in schema["properties"].items():
        field.update(_RANGES.get(name, {}))
    text = json.dumps(schema)
    for _ in parts:  # parts refer to one another
        for name, part in parts.items():
            text = text.replace(json.dumps({"$ref": f"#/$defs/{name}"}), json.dumps(part))
    found: dict[str, Any] = json.loads(text)
    return found
