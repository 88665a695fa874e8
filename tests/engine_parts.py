"""An engine without a model: the next token follows from those before it by a rule that a test can follow."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from tiny import make_tokenizer

from sightline.engine.core import EngineCore
from sightline.engine.inputs import Prompt
from sightline.engine.media.encoder_cache import EncoderCache
from sightline.engine.record import Preparation
from sightline.engine.sampling.answer import Answer
from sightline.engine.sampling.params import SamplingParams
from sightline.engine.sampling.sampler import Sampler
from sightline.engine.scheduling.blocks import BlockPool
from sightline.engine.scheduling.request import Medium, Request, Span
from sightline.engine.scheduling.scheduler import Scheduler
from sightline.engine.scheduling.step import Step
from sightline.engine.settings import EngineSettings
from sightline.engine.stats import CacheUse
from sightline.errors import SightlineError

WORDS = 300  # of the vocabulary


def following(tokens: list[int]) -> int:
    """The token that comes next; text that repeats goes on as it did before."""
    return (tokens[-1] * 7 + len(tokens) // 64) % WORDS


def answer_to(prompt: list[int], length: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(length):
        tokens.append(following(tokens))
    return tokens[len(prompt) :]


class RuleRunner:
    """Stands for a `Runner`; `before` is called with each step and may raise, `spoils` names requests with nan."""

    def __init__(self) -> None:
        self.before: Callable[[Step], None] = lambda step: None
        self.spoils: set[str] = set()
        self.steps: list[Step] = []

    def run(self, step: Step) -> torch.Tensor:
        self.steps.append(step)
        self.before(step)
        rows = []
        for chunk in step.chunks:
            known = chunk.sequence.tokens[: chunk.start] + chunk.tokens
            bad = chunk.sequence.request.id in self.spoils
            rows += [
                float("nan") if bad else float(following(known[: place + 1]))
                for place in range(chunk.start, len(known))
            ]
        return torch.tensor(rows)[:, None]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        columns = torch.arange(WORDS, dtype=torch.float32)
        return torch.where(hidden == columns, 10.0, 0.0) + hidden * 0


def make_core(runner: RuleRunner, *, blocks: int = 64, block_size: int = 4, **options: Any) -> EngineCore:
    chosen: dict[str, Any] = {
        "max_num_seqs": 4,
        "max_num_batched_tokens": 32,
        "max_model_len": 200,
        **options,
    }
    settings = EngineSettings.of("nowhere", **chosen).for_device("cpu")
    pool = BlockPool(blocks, block_size, prefix_caching=settings.enable_prefix_caching)
    features = EncoderCache(1000, 4)
    scheduler = Scheduler(
        pool,
        features,
        max_num_seqs=settings.max_num_seqs or 1,
        max_num_batched_tokens=settings.max_num_batched_tokens or 1,
        max_model_len=settings.max_model_len or 1,
        max_encoder_tokens=settings.max_encoder_tokens or 1,
    )
    sampler = Sampler(WORDS, "cpu")
    return EngineCore(
        runner,
        scheduler,
        sampler,
        pool=pool,
        features=features,
        settings=settings,
        tokenizer=make_tokenizer(),
    )


def make_request(
    name: str, prompt: list[int], params: SamplingParams, priority: int = 0, media: bytes | None = None
) -> Request:
    """`media` is the key of a picture that stands for the second and third token of the prompt."""
    limit = params.max_tokens or 1
    answers = [
        Answer(params, index=index, limit=limit, tokenizer=make_tokenizer(), prompt_tokens=prompt, seed=index)
        for index in range(params.n)
    ]
    shown = [] if media is None else [Medium("image", media, 2)]
    spans = [Span(0, 1, 2, 0)] if shown else []
    return Request(name, prompt, params, answers, limit=limit, priority=priority, media=shown, spans=spans)


class PlainPreparer:
    """Stands for a `Preparer` of prompts that are token ids; a prompt that begins with 299 cannot be used."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.prepared: list[str] = []

    def check(self, prompt: Prompt, params: SamplingParams, *, headers: bool = False) -> None:
        pass

    def prepare(
        self, prompt: Prompt, params: SamplingParams, *, request_id: str, priority: int = 0, **rest: Any
    ) -> tuple[Request, Preparation]:
        time.sleep(self.seconds)
        self.prepared.append(request_id)
        ids = list(prompt.ids or ())
        if ids[0] == 299:
            raise SightlineError("the prompt begins with 299")
        return make_request(request_id, ids, params, priority), Preparation(given=rest["given"])

    def cache_use(self) -> CacheUse:
        return CacheUse()
