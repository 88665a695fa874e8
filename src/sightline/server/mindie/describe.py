"""What the OpenAPI document says about requests and answers of MindIE's dialect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import Response

from sightline.server.mindie.fields import INFER, TGI, TRITON, VLLM, Field, schema_of

_TEXT, _INT = {"type": "string"}, {"type": "integer"}
_OBJECT: dict[str, Any] = {"type": "object"}
_PROMPT = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["type"],
                "properties": {"type": {"enum": ["text", "image_url", "video_url"]}},
            },
        },
    ]
}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_ERROR = {
    "type": "object",
    "required": ["error", "error_type"],
    "properties": {"error": _TEXT, "error_type": _TEXT},
}


def answer_of(**required: Mapping[str, Any]) -> dict[str, Any]:
    """An answer that is an object with these properties, and maybe others."""
    return {"type": "object", "required": list(required), "properties": dict(required)}


TEXTS = answer_of(text={"type": "array", "items": _TEXT})
GENERATED = answer_of(generated_text=_TEXT)
TRITON_TEXT = answer_of(id=_TEXT, model_name=_TEXT, text_output=_TEXT)
TOKENS = answer_of(token_number=_INT, tokens={"type": "array", "items": _TEXT})
ANY = _OBJECT


def asks(prompt: str, table: Iterable[Field]) -> dict[str, Any]:
    """A body with a prompt and its settings: beside it in the vLLM form, else under `parameters`."""
    properties = {prompt: _IDS if prompt == "input_id" else _PROMPT, "stream": {"type": "boolean"}}
    settings = schema_of(table)
    more = settings["properties"] if prompt == "prompt" else {"parameters": settings}
    return {"type": "object", "required": [prompt], "properties": {**properties, **more}}


GENERATE = {"anyOf": [asks("prompt", VLLM), asks("inputs", TGI)]}
TGI_BODY, INFER_BODY, INFER_TOKEN_BODY = asks("inputs", TGI), asks("inputs", INFER), asks("input_id", INFER)
TRITON_BODY = asks("text_input", TRITON)


def described(
    body: Mapping[str, Any] | None, *answers: Mapping[str, Any], streams: bool = False, errors: bool = True
) -> dict[str, Any]:
    """What a route is told about its body and its answers.

    Args:
        answers: JSON schemas, of which one holds; none for an answer without a body.
        streams: it may also be a stream of events.
        errors: they are MindIE's.
    """
    content: dict[str, Any] = {}
    if answers:
        content["application/json"] = {"schema": answers[0] if len(answers) == 1 else {"anyOf": [*answers]}}
    if streams:
        content["text/event-stream"] = {"schema": {}}
    error = {
        "description": "an error",
        "content": {"application/json": {"schema": _ERROR if errors else _OBJECT}},
    }
    # 422 by its own number too: the web framework would describe it otherwise where a path has a parameter.
    responses: dict[int | str, Any] = dict.fromkeys((422, "4XX", "5XX"), error)
    responses[200] = {"description": "an answer", "content": content}
    route: dict[str, Any] = {"responses": responses}
    if "application/json" not in content:
        route["response_class"] = Response  # else the framework would add that it is JSON
    if body is not None:
        asked = {"application/json": {"schema": dict(body)}}
        route["openapi_extra"] = {"requestBody": {"required": True, "content": asked}}
    return route
