"""Fields of OpenAI and vLLM that are not honoured: which are ignored, which are refused, and why.

What only concerns OpenAI's own service is ignored. What asks for something that this server does not give is refused:
to leave it out silently would give a wrong answer. Fields that nobody knows are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sightline.server.errors import RequestError

IGNORED: dict[str, str] = {
    "user": "there are no accounts",
    "safety_identifier": "there are no accounts",
    "store": "nothing is stored",
    "metadata": "nothing is stored",
    "service_tier": "there is one",
    "prompt_cache_key": "prompts are cached by their tokens, and media by their bytes",
    "prompt_cache_options": "prompts are cached by their tokens, and media by their bytes",
    "prompt_cache_retention": "prompts are cached by their tokens, and media by their bytes",
    "prediction": "it changes the speed alone",
    "reasoning_effort": "the models have no such setting",
    "verbosity": "the models have no such setting",
    "include_reasoning": "reasoning is part of the text",
    "guided_decoding_backend": "there is one",
}

REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "audio": ((), "answers are text"),
    "modalities": ((["text"],), "answers are text"),
    "functions": (([],), "write them as tools"),
    "function_call": (("none", "auto"), "write it as tool_choice"),
    "moderation": ((), "nothing is moderated"),
    "web_search_options": ((), "nothing is searched"),
    "suffix": (("",), "the models do not fill in between texts"),
    "use_beam_search": ((False,), "answers are sampled"),
    "cache_salt": ((), "prompts of all clients share one cache"),
    "chat_template": ((), "the model's own is used"),
    "documents": (([],), "write them into a message"),
    "prompt_embeds": ((), "write the prompt as text or token ids"),
    "logits_processors": (([],), "requests bring no code"),
    "logprob_token_ids": (([],), "ask for top_logprobs"),
    "kv_transfer_params": ((), "each server has its own cache"),
    "thinking_token_budget": ((), "the models have no such setting"),
    "repetition_detection": ((), "use repetition_penalty"),
    "vllm_xargs": (({},), "they are another engine's"),
    "guided_whitespace_pattern": ((), "the schema says what may come"),
    "structural_tag": ((), "use a grammar"),
}
"""By name: the values that ask for nothing, and what to say otherwise."""


def check_unsupported(given: Mapping[str, Any] | None) -> None:
    """Raises RequestError where a field is among `REFUSED`."""
    for name, value in (given or {}).items():
        harmless, why = REFUSED.get(name, ((), ""))
        if why and value is not None and not any(_same(value, one) for one in harmless):
            raise RequestError(f"{name} is not supported by this server ({why}); leave it out", param=name)


def _same(value: Any, harmless: Any) -> bool:
    return type(value) is type(harmless) and value == harmless
