"""`sightline bench serve`: prompts are made, the server is met, and each load of the sweep is measured in turn."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from sightline.bench.serve.arrivals import Arrivals
from sightline.bench.serve.connection import Client, Site
from sightline.bench.serve.datasets import DataSettings, PromptMaker, without_pictures
from sightline.bench.serve.load import Measured, run_load
from sightline.bench.serve.metrics import summarize
from sightline.bench.serve.outcome import Outcome
from sightline.bench.serve.prompts import CHAT, Prompt
from sightline.bench.serve.server import Server
from sightline.errors import SightlineError, UsageError
from sightline.progress import note

_PROMPTS = 100
_MAX_BODIES = 4 * 2**30  # bytes of prepared requests


@dataclass(frozen=True)
class BenchSettings:
    """Whom to ask, what, how much and how fast.

    Attributes:
        prompts: requests of each load; None is all rows of a dataset that the warm-up leaves, else 100, or in a sweep
            over concurrency eight a client and at least ten.
        max_concurrency: requests open at a time; None for any number.
        sweep: several loads, as numbers of concurrent requests, or of requests a second with `sweep_rates`.
        fields: of every body, such as {"temperature": 0.0}.
        warmup: requests before each load, of the same kind, that are not counted.
        timeout: seconds of one request.
        exact_answers: every answer has all the tokens it may have, so that those of a server that does not count them
            are known.
    """

    base_url: str = "http://127.0.0.1:8000"
    endpoint: str = CHAT
    model: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    insecure: bool = False
    data: DataSettings = field(default_factory=DataSettings)
    prompts: int | None = None
    arrivals: Arrivals = field(default_factory=Arrivals)
    max_concurrency: int | None = None
    sweep: tuple[float, ...] = ()
    sweep_rates: bool = False
    seed: int | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    goodput: Mapping[str, float] = field(default_factory=dict)
    percentiles: tuple[float, ...] = (99.0,)
    warmup: int = 1
    timeout: float = 600.0
    exact_answers: bool = False

    def __post_init__(self) -> None:
        for name, value, least in (
            ("--num-prompts", self.prompts, 1),
            ("--max-concurrency", self.max_concurrency, 1),
            ("--warmup", self.warmup, 0),
        ):
            if value is not None and value < least:
                raise UsageError(f"{name} must be {least} or more, not {value}")
        if not self.timeout > 0:
            raise UsageError(f"--timeout must be above 0 s, not {self.timeout}")
        if not all(0 <= one <= 100 for one in self.percentiles):
            raise UsageError("--metric-percentiles are from 0 to 100")
        if any(not one > 0 or not (self.sweep_rates or float(one).is_integer()) for one in self.sweep):
            raise UsageError("--sweep takes whole numbers of clients, --sweep-rates rates above 0")
        if self.sweep and (not self.arrivals.immediate or (self.max_concurrency and not self.sweep_rates)):
            raise UsageError("a sweep sets the load; leave --request-rate and --max-concurrency out")

    def loads(self) -> list[BenchSettings]:
        """The single loads of this, each with its own arrivals or concurrency."""
        if not self.sweep:
            return [self]
        if self.sweep_rates:
            return [
                replace(self, sweep=(), arrivals=replace(self.arrivals, rate=float(rate)))
                for rate in self.sweep
            ]
        return [
            replace(
                self, sweep=(), max_concurrency=clients, prompts=self.prompts or self._prompts_for(clients)
            )
            for clients in map(int, self.sweep)
        ]

    def _prompts_for(self, clients: int) -> int | None:
        return max(10, 8 * clients) if self.data.is_random else None


def bench(settings: BenchSettings) -> list[dict[str, Any]]:
    """Measure and return the result of each load, in the order of the sweep.

    An interrupted load is the last one; its result says how many requests it left unanswered.

    Raises:
        SightlineError: the server cannot be reached or used, or there is nothing to ask.
    """
    return asyncio.run(_bench(settings))


async def _bench(settings: BenchSettings) -> list[dict[str, Any]]:
    client = Client(Site.read(settings.base_url), headers=settings.headers, insecure=settings.insecure)
    server = Server(client, settings.endpoint, settings.model, dict(settings.fields))
    # One that was not given is new each time: a server's caches would know the prompts of the last run.
    seed = secrets.randbits(32) if settings.seed is None else settings.seed
    try:
        await server.meet()
        count = server.count if server.counts else None
        # Of another seed, or the first request's beginning would be known.
        (first,) = await PromptMaker(without_pictures(settings.data), seed + 1).make(1)
        await server.try_out(first, settings.timeout)
        maker = PromptMaker(settings.data, seed, count)
        results: list[dict[str, Any]] = []
        for number, load in enumerate(settings.loads()):
            if len(settings.loads()) > 1:
                note(f"load {number + 1} of {len(settings.loads())}: {_load_name(load)}")
            results.append(await _measure(load, server, maker, seed))
            if results[-1]["unanswered"]:
                break
        return results
    finally:
        await client.close()


async def _measure(settings: BenchSettings, server: Server, maker: PromptMaker, seed: int) -> dict[str, Any]:
    import numpy as np

    count = settings.prompts or _default_prompts(settings, maker.rows)
    random = np.random.default_rng([seed, count])
    warm = await run_prompts(
        await maker.make(settings.warmup), server, [0.0] * settings.warmup, settings, "warming up"
    )
    if warm.unanswered:
        raise KeyboardInterrupt
    if warm.outcomes and not any(one.ok for one in warm.outcomes):
        raise SightlineError(f"no warm-up request was answered: {warm.outcomes[0].error}")
    prompts = await maker.make(count)
    times = settings.arrivals.times(count, random)
    measured = await run_prompts(prompts, server, times, settings, "asking")
    await _count_missing(measured, server)
    return {
        **_about(settings, server, count, seed),
        **summarize(measured, percentiles=_percentiles(settings), goodput=settings.goodput),
    }


async def run_prompts(
    prompts: Sequence[Prompt], server: Server, times: Sequence[float], settings: BenchSettings, label: str
) -> Measured:
    """Ask `prompts` of `server` at `times`. Their bodies are made before the first is sent.

    Raises:
        SightlineError: the bodies need too much memory, or a medium cannot be read.
    """
    bodies: list[bytes] = []
    size = 0
    for prompt in prompts:
        bodies.append(server.body(prompt))
        size += len(bodies[-1])
        if size > _MAX_BODIES:
            raise SightlineError(
                f"{len(bodies)} of {len(prompts)} requests take {size / 2**30:.0f} GiB; ask with a smaller "
                "--num-prompts or smaller pictures"
            )
    return await run_load(
        [
            partial(_ask, server, body, prompt, settings.exact_answers)
            for body, prompt in zip(bodies, prompts, strict=True)
        ],
        times,
        max_concurrency=settings.max_concurrency,
        timeout=settings.timeout,
        label=label,
    )


async def _ask(server: Server, body: bytes, prompt: Prompt, exact: bool, outcome: Outcome) -> None:
    outcome.input_words = prompt.words
    await server.ask(body, outcome)
    if exact and outcome.ok and outcome.output_tokens is None:
        outcome.output_tokens = prompt.output_tokens


async def _count_missing(measured: Measured, server: Server) -> None:
    """Where the answers bring no usage, count their texts."""
    for outcome in measured.outcomes:
        if outcome.ok and outcome.output_tokens is None and server.counts:
            outcome.output_tokens = await server.count(outcome.text)


def _about(settings: BenchSettings, server: Server, count: int, seed: int) -> dict[str, Any]:
    backend = "openai-chat" if server.endpoint.endswith("/chat/completions") else "openai"
    rate = settings.arrivals.rate
    by_rate = settings.max_concurrency is None and rate != math.inf
    return {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": backend,
        "backend": backend,
        "label": None,
        "model_id": server.model,
        "tokenizer_id": None,
        "num_prompts": count,
        "request_rate": "inf" if rate == math.inf else rate,
        "burstiness": settings.arrivals.burstiness,
        "max_concurrency": settings.max_concurrency,
        "load": rate if by_rate else settings.max_concurrency or count,
        "load_kind": "rate" if by_rate else "concurrency",
        "base_url": str(server.client.site),
        "dataset": settings.data.dataset,
        "seed": seed,
        "text_lengths_by": "server" if server.counts else "words",
        "left_out": list(server.left_out),
    }


def _percentiles(settings: BenchSettings) -> tuple[float, ...]:
    """The 99th is always there: plot and table show it."""
    return tuple(dict.fromkeys((*settings.percentiles, 99.0)))


def _default_prompts(settings: BenchSettings, rows: int | None) -> int:
    if rows is None:
        return _PROMPTS
    return rows - settings.warmup if rows > settings.warmup else rows


def _load_name(settings: BenchSettings) -> str:
    if settings.arrivals.rate != math.inf:
        return f"{settings.arrivals.rate:g} requests a second"
    return f"{settings.max_concurrency} at a time"


__all__ = ["BenchSettings", "Prompt", "bench", "run_prompts"]
