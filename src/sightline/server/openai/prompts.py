"""The prompts of a completion request: texts or token ids that no template is applied to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sightline.data.conversation import Conversation
from sightline.engine.inputs import Prompt
from sightline.server.errors import RequestError
from sightline.server.openai.fields import CompletionRequest
from sightline.server.openai.messages import check_characters
from sightline.server.openai.sampling import truncation
from sightline.server.service import Service


@dataclass(frozen=True)
class Raw:
    """One prompt as it was given; both where it was cut to its last tokens."""

    text: str | None
    ids: tuple[int, ...] | None

    @property
    def prompt(self) -> Prompt:
        return Prompt(Conversation([]), text=self.text if self.ids is None else None, ids=self.ids)

    def echoed(self, tokenizer: Any) -> str:
        """Its text."""
        return str(self.text) if self.ids is None else str(tokenizer.decode(list(self.ids)))


def prompts_of(request: CompletionRequest, service: Service) -> list[Raw]:
    """All prompts of a request; call it in a thread where `truncate_prompt_tokens` is set, for it tokenises then.

    Raises:
        RequestError: there are none, too many, or one is empty or too long.
    """
    given = request.prompt
    several: list[Any] = [given] if isinstance(given, str) or _is_ids(given) else list(given)
    most, longest = service.limits.max_prompts, service.llm.max_model_len
    if len(several) > most:
        raise RequestError(f"prompt may hold {most} prompts; send fewer", param="prompt")
    answers = request.n or 1
    if len(several) * answers > service.limits.max_answers:
        raise RequestError(
            f"prompt holds {len(several)} prompts and n is {answers}, but a request may have "
            f"{service.limits.max_answers} answers in all; send fewer prompts or lower n",
            param="n",
        )
    if not several or not all(several):
        raise RequestError("prompt is empty; give a text or token ids", param="prompt")
    check_characters(sum(len(one) for one in several if isinstance(one, str)), service.limits, "prompt")
    cut = truncation(request, longest)
    return [_raw(one, cut, longest, service.llm.get_tokenizer()) for one in several]


def _raw(one: Any, cut: int | None, longest: int, tokenizer: Any) -> Raw:
    if isinstance(one, str):
        if cut is None:
            return Raw(one, None)
        ids = tokenizer(one, add_special_tokens=False)["input_ids"]
        return Raw(one, None) if len(ids) <= cut else Raw(None, tuple(ids[-cut:]))
    ids = one if cut is None else one[-cut:]
    if len(ids) > longest:
        raise RequestError(
            f"the prompt has {len(ids)} tokens, above max_model_len {longest}; shorten it", param="prompt"
        )
    return Raw(None, tuple(ids))


def _is_ids(given: Any) -> bool:
    return bool(given) and isinstance(given[0], int)
