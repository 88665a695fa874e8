"""What MindIE's requests ask: a text as it stands, or a list of parts that goes through the model's template."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from sightline.data.conversation import Conversation, Message, Text
from sightline.data.conversation import Part as ConversationPart
from sightline.engine.inputs import Prompt
from sightline.server.errors import RequestError
from sightline.server.openai.parts import PartReader, check_count
from sightline.server.service import Service

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE | re.ASCII)
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*", re.ASCII)
_JPEG = "/9j/"  # how the base64 of every JPEG begins, and no path that anybody has
_SHORTEST = 64  # characters; no picture is smaller


@dataclass(frozen=True)
class Question:
    """Attributes:
    prompt: for `Service.submit`.
    text: what answers repeat: the prompt, or the first text of a list.
    field: of the request, for errors.
    """

    prompt: Conversation | Prompt
    text: str
    field: str

    def where(self, message: int, part: int, medium: ConversationPart) -> str:
        """The field that holds a medium."""
        kind = "image_url" if type(medium).__name__ == "Image" else "video_url"
        return f"{self.field}[{part}].{kind}"


def read_question(service: Service, value: Any, field: str) -> Question:
    """A prompt. A text is taken as it stands, as MindIE takes it: whoever sends one has applied the template.

    Raises:
        RequestError: it is neither text nor parts, or holds more than the server's limits allow.
    """
    if isinstance(value, str):
        _check_text(value, service, field)
        return Question(Prompt(Conversation([]), text=value), value, field)
    if not isinstance(value, list):
        raise RequestError(f"{field} must be a text or a list of parts", param=field)
    if not value:
        raise RequestError(f"{field} is empty; give a text or parts", param=field)
    check_count([value], field)
    spec = service.llm.model.processor.vision
    reader = PartReader.of(spec, service.fetcher is not None, None, None)
    parts = [_part(reader, part, f"{field}[{place}]") for place, part in enumerate(value)]
    if len(parts) - sum(isinstance(part, Text) for part in parts) > service.limits.max_media:
        raise RequestError(
            f"{field} holds more than {service.limits.max_media} images and videos; send fewer", param=field
        )
    texts = [part.text for part in parts if isinstance(part, Text)]
    _check_text("".join(texts), service, field, empty=True)
    conversation = Conversation([Message("user", parts)])
    return Question(conversation, texts[0] if texts else "", field)


async def truncated(service: Service, question: Question, tokens: int) -> Question:
    """With the last `tokens` tokens of its prompt alone.

    Raises:
        RequestError: it is a list of parts, whose media cannot be cut.
    """
    prompt = question.prompt
    if isinstance(prompt, Conversation) or prompt.text is None:
        raise RequestError(
            f"parameters.truncate works on a text, and {question.field} is a list of parts; leave it out",
            param="parameters.truncate",
        )
    text = prompt.text
    ids = await service.threads.run(lambda: tokenise(service, text))
    return question if len(ids) <= tokens else replace(question, prompt=_of_ids(ids[-tokens:]))


def read_ids(service: Service, value: Any, field: str) -> Question:
    """A prompt that is token ids.

    Raises:
        RequestError: it is not a list of them.
    """
    wrong = not isinstance(value, list) or any(
        isinstance(token, bool) or not isinstance(token, int) or token < 0 for token in value
    )
    if wrong or not value:
        raise RequestError(f"{field} must be a list of token ids", param=field)
    return Question(_of_ids(value), "", field)


def tokenise(service: Service, text: str) -> list[int]:
    """The token ids of a text as it stands; takes seconds for the longest ones."""
    return list(service.llm.get_tokenizer()(text, add_special_tokens=False)["input_ids"])


def _of_ids(ids: list[int]) -> Prompt:
    return Prompt(Conversation([]), ids=tuple(ids))


def _check_text(text: str, service: Service, field: str, *, empty: bool = False) -> None:
    if not text and not empty:
        raise RequestError(f"{field} is empty; give a text or parts", param=field)
    if len(text) > service.limits.max_prompt_chars:
        raise RequestError(
            f"{field} has {len(text):,} characters, more than {service.limits.max_prompt_chars:,}; shorten it",
            param=field,
        )


def _part(reader: PartReader, part: Any, where: str) -> ConversationPart:
    if not isinstance(part, Mapping):
        raise RequestError(f"{where} must be an object with a type", param=where)
    kind = part.get("type")
    if kind in ("image_url", "video_url"):
        value = part.get(kind)
        url = value.get("url") if isinstance(value, Mapping) else value
        if isinstance(url, str):
            plain = _url(url, kind)
            part = {**part, kind: {**value, "url": plain} if isinstance(value, Mapping) else plain}
    return reader.read(part, where)


def _url(source: str, kind: str) -> str:
    """MindIE's plain paths and bare base64 as the URLs that everybody else writes."""
    if source.startswith("/") and not source.startswith(_JPEG):
        return "file://" + quote(source)
    bare = kind == "image_url" and len(source) >= _SHORTEST and not _SCHEME.match(source)
    if bare and _BASE64.fullmatch(source):
        return "data:image/jpeg;base64," + "".join(source.split())
    return source
