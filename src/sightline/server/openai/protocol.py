"""OpenAI's chat protocol: a request body as conversation and sampling settings, an answer as their objects.

Media come inside the request, as data: URLs. A client cannot make the server open a file or an address.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sightline.data.conversation import Conversation, Image, Message, Part, Text, Video
from sightline.engine.outputs import RequestOutput
from sightline.engine.sampling.params import ParameterError, SamplingParams
from sightline.server.errors import RequestError

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
MAX_MEDIA = 16
# Each costs time at every token, in the engine's own thread.
MAX_STOPS, MAX_STOP_LENGTH, MAX_STOP_IDS, MAX_BIASES = 16, 256, 256, 1024

_SAMPLING = (
    *("n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "min_tokens", "stop"),
    *("stop_token_ids", "ignore_eos", "seed", "skip_special_tokens"),
    *("presence_penalty", "frequency_penalty", "logit_bias"),
)


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool = False


class ChatRequest(BaseModel):
    """The fields that are honoured. Unknown ones are ignored; of OpenAI's, those in `_REFUSED` are refused."""

    model_config = ConfigDict(strict=True, extra="allow")

    messages: list[dict[str, Any]] = Field(min_length=1)
    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    seed: int | None = None
    skip_special_tokens: bool | None = None
    do_sample: bool | None = None


# Fields that ask for something which this server does not give: to leave them out silently would give a wrong answer.
_REFUSED: dict[str, Any] = {
    "tools": ([], None),
    "functions": ([], None),
    "logprobs": (False, None),
    "response_format": ({"type": "text"}, None),
}


def read_request(body: bytes) -> ChatRequest:
    """Parse a body.

    Raises:
        RequestError: not JSON, or a field of the wrong type; its `param` names the field.
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = _path(first["loc"])
        raise RequestError(f"{where or 'the body'}: {first['msg'].lower()}", param=where or None) from error
    for name, harmless in _REFUSED.items():
        value = (request.model_extra or {}).get(name)
        if value is not None and value not in harmless:
            raise RequestError(f"{name} is not supported by this server; leave it out", param=name)
    return request


def sampling_of(request: ChatRequest, defaults: SamplingParams) -> SamplingParams:
    """The request's settings over the checkpoint's `defaults`; without a limit, up to the model's length.

    Raises:
        RequestError: a value is out of its range.
    """
    given = {name: value for name in _SAMPLING if (value := getattr(request, name)) is not None}
    limit = request.max_completion_tokens
    given["max_tokens"] = request.max_tokens if limit is None else limit
    if request.do_sample is False:
        given["temperature"] = 0.0
    _check_lengths(request)
    try:
        return replace(defaults, **given)
    except ParameterError as error:
        name = error.name
        if name == "max_tokens" and limit is not None:
            name = "max_completion_tokens"
        raise RequestError(str(error), param=name) from error


def _check_lengths(request: ChatRequest) -> None:
    texts = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(texts) > MAX_STOPS or any(len(text) > MAX_STOP_LENGTH for text in texts):
        raise RequestError(
            f"stop may hold {MAX_STOPS} texts of {MAX_STOP_LENGTH} characters; give fewer or shorter ones",
            param="stop",
        )
    if len(request.stop_token_ids or []) > MAX_STOP_IDS:
        raise RequestError(f"stop_token_ids may hold {MAX_STOP_IDS} ids; give fewer", param="stop_token_ids")
    if len(request.logit_bias or {}) > MAX_BIASES:
        raise RequestError(f"logit_bias may hold {MAX_BIASES} tokens; give fewer", param="logit_bias")


def conversation_of(request: ChatRequest) -> Conversation:
    """The messages as a conversation. Nothing is opened here.

    Raises:
        RequestError: a message or a part that is not understood, or media that are not data: URLs.
    """
    messages = [_message(message, f"messages[{i}]") for i, message in enumerate(request.messages)]
    conversation = Conversation(messages)
    if not conversation.without_answer().messages:
        raise RequestError("messages hold no question: only the assistant speaks", param="messages")
    if len(conversation.images) + len(conversation.videos) > MAX_MEDIA:
        raise RequestError(f"messages hold more than {MAX_MEDIA} images and videos", param="messages")
    return conversation


def _message(message: Mapping[str, Any], where: str) -> Message:
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError(f"{where}.role must be one of {', '.join(ROLES)}", param=f"{where}.role")
    content = message.get("content")
    if isinstance(content, str):
        return Message(ROLES[role], [Text(content)])
    if not isinstance(content, list):
        raise RequestError(f"{where}.content must be a text or a list of parts", param=f"{where}.content")
    return Message(ROLES[role], [_part(part, f"{where}.content[{i}]") for i, part in enumerate(content)])


def _part(part: Any, where: str) -> Part:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return Text(part["text"])
    if kind == "image_url":
        return Image(_data_url(part, kind, where))
    if kind == "video_url":
        return Video(_data_url(part, kind, where))
    raise RequestError(f"{where} must be a part of type text, image_url or video_url", param=where)


def _data_url(part: Mapping[str, Any], kind: str, where: str) -> str:
    value = part.get(kind)
    url = value.get("url") if isinstance(value, Mapping) else value
    if not isinstance(url, str) or url[:5].lower() != "data:":
        raise RequestError(
            f"{where}.{kind} must be a data: URL (data:image/png;base64,...); this server opens no files and "
            "no addresses",
            param=f"{where}.{kind}",
        )
    return url


def _path(places: tuple[int | str, ...]) -> str:
    """("messages", 0) -> "messages[0]"; pydantic's names of union members are left out."""
    path = ""
    for place in places:
        if isinstance(place, int):
            path += f"[{place}]"
        elif place not in ("str", "list[str]"):
            path += f".{place}" if path else str(place)
    return path


@dataclass(frozen=True)
class Reply:
    """What is common to all objects of one answer."""

    model: str
    id: str
    created: int

    @classmethod
    def new(cls, model: str) -> Reply:
        return cls(model, f"chatcmpl-{uuid.uuid4().hex}", int(time.time()))

    def completion(self, output: RequestOutput) -> dict[str, Any]:
        """The object of an answer that is not streamed."""
        choices = [
            {
                "index": answer.index,
                "message": {"role": "assistant", "content": answer.text},
                "logprobs": None,
                "finish_reason": answer.finish_reason,
            }
            for answer in output.outputs
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": usage_of(output)}

    def chunk(self, index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        """One object of a stream."""
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._head("chat.completion.chunk"), "choices": [choice]}

    def usage_chunk(self, output: RequestOutput) -> dict[str, Any]:
        """The last object of a stream that asked for it: no choice, the token counts."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage_of(output)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage_of(output: RequestOutput) -> dict[str, Any]:
    """Token counts in OpenAI's form, with the vision tokens among the prompt's."""
    prompt, answer = len(output.prompt_token_ids), output.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
        "prompt_tokens_details": {
            "cached_tokens": output.num_cached_tokens,
            "vision_tokens": output.vision_tokens,
        },
    }
