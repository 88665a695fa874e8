"""From a prompt to a request that the engine can compute, and when that work is done.

On an accelerator a few threads prepare beside the engine. On a CPU they would take the cores from it: a second
busy thread makes every barrier of a step's parallel loops wait milliseconds, so that steps take three to four times
as long. There the engine's own thread prepares between its steps.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sightline.data.media import DEFAULT, Budget
from sightline.engine.inputs import Prompt, check_text
from sightline.engine.media.opening import MediaPreparer
from sightline.engine.record import Preparation
from sightline.engine.sampling.answer import Answer
from sightline.engine.sampling.params import SamplingParams
from sightline.engine.sampling.structured.compiler import Compiler
from sightline.engine.sampling.structured.matcher import Grammar, Matcher
from sightline.engine.scheduling.request import Request
from sightline.engine.settings import EngineSettings
from sightline.engine.stats import CacheUse
from sightline.errors import UsageError

if TYPE_CHECKING:
    from sightline.models.adapters.loader import LoadedAdapter

# Between the seeds of the answers to one prompt: the next prompt's seed is one higher.
_SEED_STEP = 1_000_000_007
# Characters of a text, for each token that it may have, by which it is first seen whether it is far too long.
_GLANCE = 8
# Tokens that the cut behind these characters may add.
_CUT = 64


class Preparer:
    """Makes requests for one model; any thread may call it.

    Args:
        model: a `VisionLanguageModel`.
        media: opens and encodes what a prompt shows.
        max_model_len: most tokens of prompt and answer.
    """

    def __init__(
        self, model: Any, media: MediaPreparer, settings: EngineSettings, *, max_model_len: int
    ) -> None:
        self.max_model_len = max_model_len
        self._model = model
        self._media = media
        self._seed = settings.seed
        self._limits = settings.limits
        self._vocabulary = int(model.processor.config.get_text_config().vocab_size)
        self.end_tokens = _end_tokens(model)
        self.grammars = Compiler(model.tokenizer, self._vocabulary, self.end_tokens)
        self._numbers = itertools.count()

    def check(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        headers: bool = False,
        adapter: LoadedAdapter | None = None,
    ) -> None:
        """What can be known before anything is opened, and with `headers` from the headers of its media.

        Args:
            adapter: that will see them; its pixel limits count.

        Raises:
            SightlineError: the prompt or its settings cannot be used.
        """
        if not isinstance(params, SamplingParams):
            raise UsageError(f"sampling_params must be SamplingParams, not {type(params).__name__}")
        self._limits.check(prompt)
        params.check_vocabulary(self._vocabulary)
        check_text(prompt)
        if prompt.ids is not None:
            self._check_ids(prompt.ids)
        if headers:
            self._check_media(prompt, self._media_of(adapter))

    def prepare(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str | None = None,
        number: int | None = None,
        priority: int = 0,
        given: float | None = None,
        fetched: float = 0.0,
        budget: Budget = DEFAULT,
        max_prompt_tokens: int | None = None,
        adapter: LoadedAdapter | None = None,
        grammar: Grammar | None = None,
    ) -> tuple[Request, Preparation]:
        """Open a prompt's media and build its request.

        Args:
            number: stands for the request where it brings no seed; None counts the requests of this engine.
            given: time.perf_counter() when the caller gave it.
            fetched: seconds that the caller took to get the media.
            budget: what one medium may cost.
            max_prompt_tokens: a longer prompt is refused.
            adapter: computes the request in place of the model alone.
            grammar: of the settings' structured_outputs; None compiles it now.

        Raises:
            SightlineError: a medium cannot be used, or the prompt is too long; the text gives the numbers.
            ParameterError: structured_outputs cannot be compiled.
        """
        begun = time.perf_counter()
        number = next(self._numbers) if number is None else number
        self.check(prompt, params)
        self._check_length(prompt, min(max_prompt_tokens or self.max_model_len, self.max_model_len))
        if grammar is None and params.structured_outputs is not None:
            grammar = self.grammars.compile(params.structured_outputs)
        ready = self._media_of(adapter).prepare(prompt, budget)
        tokens = ready.encoded.input_ids.tolist()
        if max_prompt_tokens is not None and len(tokens) > max_prompt_tokens:
            raise UsageError(
                f"the prompt has {len(tokens)} tokens, above the input limit of {max_prompt_tokens}; shorten it"
            )
        limit = self._room(len(tokens), sum(medium.tokens for medium in ready.media))
        limit = min(limit, params.max_tokens or limit)
        request = Request(
            str(number) if request_id is None else request_id,
            tokens,
            params,
            self._answers(tokens, params, number, limit, grammar),
            limit=limit,
            media=ready.media,
            spans=ready.spans,
            priority=priority,
            adapter=None if adapter is None else adapter.key,
            encoded=ready.encoded,
            adapted=adapter,
        )
        preparation = Preparation(prompt.text, begun if given is None else given)
        preparation.fetch, preparation.decode = fetched + ready.seconds["fetch"], ready.seconds["decode"]
        preparation.total = fetched + time.perf_counter() - begun
        return request, preparation

    def _media_of(self, adapter: LoadedAdapter | None) -> MediaPreparer:
        return self._media if adapter is None else self._media.seen_with(adapter.vision, adapter.tower_key)

    def _answers(
        self, tokens: list[int], params: SamplingParams, number: int, limit: int, grammar: Grammar | None
    ) -> list[Answer]:
        seed = params.seed if params.seed is not None else self._seed * 1_000_003 + number
        return [
            Answer(
                params,
                index=index,
                end_tokens=self.end_tokens,
                limit=limit,
                tokenizer=self._model.tokenizer,
                prompt_tokens=tokens,
                seed=(seed + index * _SEED_STEP) % 2**63,
                structure=None if grammar is None else Matcher(grammar),
            )
            for index in range(params.n)
        ]

    def cache_use(self) -> CacheUse:
        cache = self._media.cache
        return CacheUse(cache.hits + cache.misses, cache.hits, cache.bytes)

    def _check_length(self, prompt: Prompt, most: int) -> None:
        """What is far too long is refused by its beginning: to tokenise millions of characters takes seconds, in which
        no other request gets a token."""
        text = prompt.text
        if text is None:
            text = "".join(message.text for message in prompt.media.messages)
        glance = _GLANCE * most
        while glance < len(text):
            tokens = self._model.tokenizer(text[:glance], add_special_tokens=False)["input_ids"]
            if len(tokens) > most + _CUT:
                raise UsageError(
                    f"the prompt has many more than the {most} tokens that it may have; shorten it"
                )
            glance *= 4

    def _check_ids(self, ids: Sequence[int]) -> None:
        wrong = next((token for token in ids if not 0 <= token < self._vocabulary), None)
        if wrong is not None:
            raise UsageError(
                f"the prompt holds the token id {wrong}, but the model knows 0 to {self._vocabulary - 1}"
            )

    def _check_media(self, prompt: Prompt, media: MediaPreparer) -> None:
        """What alone is too long is refused by its headers: decoded, it might take more memory than there is."""
        vision = media.processor.count_vision(prompt.media)
        if vision >= self.max_model_len:
            raise UsageError(
                f"the prompt's images and videos take {vision} tokens, which leaves no room for an answer in "
                f"max_model_len {self.max_model_len}; give fewer or lower max_pixels"
            )

    def _room(self, length: int, vision: int) -> int:
        if length >= self.max_model_len:
            raise UsageError(
                f"the prompt has {length} tokens ({vision} of them from images and videos), which leaves "
                f"no room for an answer in max_model_len {self.max_model_len}; shorten it or lower max_pixels"
            )
        return self.max_model_len - length


def _end_tokens(model: Any) -> frozenset[int]:
    """The model's own end tokens: those of generation_config.json and the tokenizer's."""
    settings = getattr(model.module, "generation_config", None)
    ends = getattr(settings, "eos_token_id", None)
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    own = model.tokenizer.eos_token_id
    return frozenset(ends if own is None else [*ends, own])
