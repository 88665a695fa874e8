"""The fields of OpenAI's requests that are honoured, with vLLM's extras. What else is sent is in `unsupported`.

Types are strict: true is not 1, and "1" is not 1. Ranges are checked where the settings are made (`sampling`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema

_T = TypeVar("_T")


@dataclass(frozen=True)
class _ToFirstFault:
    """Reading a list ends at its first fault: one told for each of a million entries would take all memory."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        assert schema["type"] == "list"
        return {**schema, "fail_fast": True}


_List = Annotated[list[_T], _ToFirstFault()]
_STRICT = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

_URL = {"type": "string", "description": "data:, https: or file: URL (see docs/api.md)"}
_MEDIUM = {"anyOf": [_URL, {"type": "object", "properties": {"url": _URL}, "required": ["url"]}]}
_PART = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": {"enum": ["text", "image_url", "video_url", "image", "video", "input_image", "refusal"]},
        "text": {"type": "string"},
        "image_url": _MEDIUM,
        "video_url": _MEDIUM,
        **{name: {"type": "integer", "minimum": 1} for name in ("min_pixels", "max_pixels", "max_frames")},
        "fps": {"type": "number", "exclusiveMinimum": 0},
    },
}
_MESSAGE = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}, {"type": "null"}]},
        "tool_calls": {"type": "array", "items": {"type": "object"}},
        "tool_call_id": {"type": "string"},
    },
}
_TOOL = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string"},
                "description": {"type": "string"},
                "parameters": {"type": "object"},
            },
        },
    },
}

Messages = Annotated[
    _List[dict[str, Any]], Field(min_length=1, json_schema_extra={"items": _MESSAGE, "minItems": 1})
]
Tools = Annotated[_List[dict[str, Any]], Field(json_schema_extra={"items": _TOOL})]


# Numbers, which are looked at once their count is known: a fault told for each of half a million would take seconds.
Biases = Annotated[dict[str, Any], Field(json_schema_extra={"additionalProperties": {"type": "number"}})]


class StreamOptions(BaseModel):
    """`continuous_usage_stats` tells the usage so far in each chunk; it is vLLM's."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JSONSchema(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", populate_by_name=True)

    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    # Not `schema`: pydantic has a method of that name.
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class ResponseFormat(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    type: str
    json_schema: JSONSchema | None = None


class StructuredOutputs(BaseModel):
    """vLLM's form. Exactly one is given."""

    model_config = ConfigDict(strict=True, extra="ignore", populate_by_name=True)

    json_: str | dict[str, Any] | bool | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: _List[str] | None = None
    grammar: str | None = None
    structural_tag: Any = None
    disable_any_whitespace: bool | None = None
    whitespace_pattern: str | None = None


class Request(BaseModel):
    """What both kinds of completions have."""

    model_config = _STRICT

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: Biases | None = None
    stop: str | _List[str] | None = None
    seed: int | None = None
    # vLLM's
    best_of: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    length_penalty: float | None = None
    min_tokens: int | None = None
    stop_token_ids: _List[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = None
    prompt_logprobs: int | None = None
    allowed_token_ids: _List[int] | None = None
    bad_words: _List[str] | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None
    priority: int | None = None
    request_id: str | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    stream_interval: int | None = None
    do_sample: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: _List[str] | None = None
    guided_grammar: str | None = None


class Templated(BaseModel):
    """What says how messages become a prompt."""

    model_config = _STRICT

    messages: Messages
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Tools | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    media_io_kwargs: dict[str, Any] | None = None


class ChatRequest(Request, Templated):
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class CompletionRequest(Request):
    """`prompt` is a text, a list of them, token ids, or a list of lists of them."""

    prompt: str | _List[str] | _List[int] | _List[_List[int]]
    logprobs: int | None = None


class TokenizeRequest(BaseModel):
    """A prompt or messages."""

    model_config = _STRICT

    model: str | None = None
    prompt: str | None = None
    messages: Messages | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: Tools | None = None


class DetokenizeRequest(BaseModel):
    model_config = _STRICT

    model: str | None = None
    tokens: _List[int]
