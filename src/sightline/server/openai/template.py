"""What a request asks, as the engine takes it: a conversation, or where a request says more, the template's text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sightline.data.conversation import Conversation, Message, Part, Text
from sightline.engine.inputs import Prompt
from sightline.errors import SightlineError
from sightline.server.errors import RequestError
from sightline.server.openai.fields import Templated, TokenizeRequest
from sightline.server.openai.messages import conversation_of
from sightline.server.openai.parts import PartReader
from sightline.server.openai.tools import Toolbox
from sightline.server.service import Service

# What the server sets itself.
_OWN = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})
_SYSTEM = re.compile(r"<\|im_start\|>system\n(.*?)<\|im_end\|>", re.DOTALL)


@dataclass(frozen=True)
class Asked:
    """A request's prompt.

    Attributes:
        prompt: a conversation, or a prompt that the template was applied to.
        conversation: with the tools.
        parts: knows the client's field of each medium.
    """

    prompt: Conversation | Prompt
    conversation: Conversation
    parts: PartReader

    @property
    def last_said(self) -> str:
        """What the assistant said last, if nobody spoke after it."""
        last = self.conversation.messages[-1]
        return last.text if last.role == "assistant" else ""

    def where(self, message: int, part: int, medium: Part) -> str:
        return self.parts.place(medium)


class Template:
    """The chat template of a server's model."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._processor = service.llm.model.processor

    def ask(self, request: Templated, toolbox: Toolbox, *, truncated: int | None = None) -> Asked:
        """A chat request's prompt. Nothing is opened; with `truncated`, which tokenises, call it in a thread.

        Args:
            truncated: most tokens of the prompt, whose first ones are left out.

        Raises:
            RequestError: the messages or what the request says about the template is not understood.
        """
        service = self._service
        parts = PartReader.of(
            self._processor.vision,
            service.fetcher is not None,
            request.mm_processor_kwargs,
            request.media_io_kwargs,
        )
        conversation = conversation_of(request.messages, parts, service.limits)
        self._check_tools(toolbox)
        conversation = toolbox.shown_in(conversation, self._default_system)
        # The engine leaves out what the assistant said last, and renders the rest as the template does by itself.
        plain = conversation.messages[-1].role != "assistant" and not (
            request.continue_final_message
            or request.add_generation_prompt is False
            or request.chat_template_kwargs
        )
        if plain and truncated is None:
            return Asked(conversation, conversation, parts)
        text = self.render(request, conversation)
        if truncated is None:
            return Asked(Prompt(conversation, text=text), conversation, parts)
        if conversation.images or conversation.videos:
            raise RequestError(
                "truncate_prompt_tokens is for prompts without images and videos; leave it out",
                param="truncate_prompt_tokens",
            )
        ids = self._processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return Asked(Prompt(conversation, ids=tuple(ids[-truncated:])), conversation, parts)

    def render(self, request: Templated | TokenizeRequest, conversation: Conversation) -> str:
        """The template's text.

        Raises:
            RequestError: the request contradicts itself, or the template refuses it.
        """
        variables = self._variables(request.chat_template_kwargs or {})
        messages, end = conversation.messages, ""
        generate = request.add_generation_prompt is not False
        if request.continue_final_message:
            if request.add_generation_prompt:
                raise RequestError(
                    "continue_final_message goes on where the last message ends; leave out "
                    "add_generation_prompt",
                    param="continue_final_message",
                )
            messages, end, generate = messages[:-1], _last_text(messages[-1]), True
        try:
            text = self._processor.prompt.render(messages, generate=generate, variables=variables)
        except SightlineError as error:
            raise RequestError(str(error), param="messages") from error
        return str(text) + end

    def _variables(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those that the template knows. They hold no lists or texts that could write other roles' turns."""
        found = {}
        for name, value in given.items():
            if name not in self._known:
                continue
            where = f"chat_template_kwargs.{name}"
            if value is not None and not isinstance(value, (bool, int, float, str)):
                raise RequestError(f"{where} must be a text, a number, true or false", param=where)
            token = self._service.control_token(value) if isinstance(value, str) else None
            if token is not None:
                raise RequestError(f"{where} holds the control token {token}; leave it out", param=where)
            found[name] = value
        return found

    def _check_tools(self, toolbox: Toolbox) -> None:
        for tool in toolbox.tools:
            token = self._service.control_token(tool.written)
            if token is not None:
                raise RequestError(
                    f"tools: {tool.name} holds the control token {token}; leave it out", param="tools"
                )

    @cached_property
    def _known(self) -> frozenset[str]:
        """The template's variables that a request may set."""
        from jinja2 import meta
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        source = self._processor.tokenizer.chat_template
        if not isinstance(source, str):
            return frozenset()
        # As transformers compiles it: with loop controls and its own {% generation %} tag.
        try:
            parsed = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(
                re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", source)
            )
        except Exception:
            return frozenset()
        special = frozenset(self._processor.tokenizer.special_tokens_map)
        return frozenset(meta.find_undeclared_variables(parsed)) - _OWN - special

    @cached_property
    def _default_system(self) -> str:
        """What the template writes as the system's turn where a conversation has none."""
        try:
            text = str(self._processor.prompt.render([Message("user", [Text("x")])]))
        except SightlineError:
            return ""
        found = _SYSTEM.match(text)
        return found[1].strip() if found else ""


def _last_text(last: Message) -> str:
    if last.role != "assistant" or not all(isinstance(part, Text) for part in last.parts):
        raise RequestError(
            "continue_final_message needs a last message of the assistant, of text alone",
            param="continue_final_message",
        )
    return last.text
