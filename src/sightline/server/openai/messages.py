"""OpenAI's messages as a conversation of ours, with tool calls and their results as the models know them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sightline.data.conversation import Conversation, Message, Text
from sightline.server.errors import RequestError
from sightline.server.limits import Limits
from sightline.server.openai.parts import PartReader, check_count
from sightline.server.openai.tools import call_text, result_text

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


def conversation_of(messages: list[dict[str, Any]], parts: PartReader, limits: Limits) -> Conversation:
    """Messages as a conversation. Nothing is opened here.

    The results of tools become a turn of the user, those that follow one another a single one, as Qwen's models
    were trained.

    Raises:
        RequestError: a message or a part that is not understood, or more than a request may hold.
    """
    if len(messages) > limits.max_messages:
        raise RequestError(f"messages may hold {limits.max_messages} messages; send fewer", param="messages")
    check_count((message.get("content") for message in messages), "messages")
    found: list[Message] = []
    results: Message | None = None
    for number, message in enumerate(messages):
        read = _message(message, f"messages[{number}]", parts)
        if read.role != "tool":
            found.append(read)
            results = None
        elif results is None:
            results = Message("user", read.parts)
            found.append(results)
        else:
            results.parts += [Text("\n"), *read.parts]
    conversation = Conversation(found)
    if not conversation.without_answer().messages:
        raise RequestError("messages hold no question: only the assistant speaks", param="messages")
    _check_lengths(conversation, limits)
    return conversation


def _check_lengths(conversation: Conversation, limits: Limits) -> None:
    if len(conversation.images) + len(conversation.videos) > limits.max_media:
        raise RequestError(f"messages hold more than {limits.max_media} images and videos", param="messages")
    check_characters(sum(len(message.text) for message in conversation.messages), limits, "messages")


def check_characters(characters: int, limits: Limits, param: str) -> None:
    """Raises RequestError where texts are too long to be tokenised at all."""
    if characters > limits.max_prompt_chars:
        raise RequestError(
            f"{param}: the texts have {characters:,} characters, above the limit of {limits.max_prompt_chars:,}; "
            "shorten them",
            param=param,
        )


def _message(message: Mapping[str, Any], where: str, parts: PartReader) -> Message:
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError(f"{where}.role must be one of {', '.join(ROLES)}", param=f"{where}.role")
    content, calls = message.get("content"), message.get("tool_calls")
    if role != "assistant" or not isinstance(calls, list) or not calls:
        if calls not in (None, []):
            raise RequestError(
                f"{where}.tool_calls must be a list of the assistant's calls", param=f"{where}.tool_calls"
            )
        if content is None and isinstance(message.get("refusal"), str):
            content = message["refusal"]
        read = _content(content, where, parts)
        return Message(ROLES[role], result_text(read) if role == "tool" else read)
    said = [] if content is None else _content(content, where, parts)
    text = call_text(calls, f"{where}.tool_calls")
    if any(not isinstance(part, Text) or part.text for part in said):
        text = "\n" + text
    return Message("assistant", [*said, Text(text)])


def _content(content: Any, where: str, parts: PartReader) -> list[Any]:
    if isinstance(content, str):
        return [Text(content)]
    if not isinstance(content, list):
        raise RequestError(f"{where}.content must be a text or a list of parts", param=f"{where}.content")
    return [parts.read(part, f"{where}.content[{i}]") for i, part in enumerate(content)]
