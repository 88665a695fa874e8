"""Whatever is asked in whatever order of an engine of whatever settings: each answer is the one it has alone.

Greedy answers are those of transformers.generate in float32, sampled ones those of an engine that has nothing else
to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from exactness import QUESTIONS, TOKENS, Bench, bench
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from sightline.engine import core, runner
from sightline.engine.assembly import Parts
from sightline.engine.inputs import Prompt
from sightline.engine.outputs import RequestOutput
from sightline.engine.sampling.params import SamplingParams
from sightline.engine.scheduling.request import Request

# Far more steps than any schedule here needs: who takes more makes no progress.
_MOST_STEPS = 3000
_PLENTY = 64


@dataclass(frozen=True)
class Ask:
    """A request; `seed` None is greedy."""

    name: str
    length: int = TOKENS
    n: int = 1
    priority: int = 0
    seed: int | None = None
    scores: bool = False


@dataclass(frozen=True)
class Abort:
    """Aborts one of the requests so far, finished or not."""

    place: int


@dataclass(frozen=True)
class Steps:
    count: int


Event = Ask | Abort | Steps


@dataclass(frozen=True)
class Schedule:
    """An engine's settings and what happens to it; played `rounds` times on one engine, the later ones on warm caches.

    Attributes:
        spare: blocks beside those that its longest request needs alone.
        features: vision tokens that the encoder cache holds.
        drafts: most of a step; `told` ones are right up to some place, which prompt lookup seldom is here.
    """

    events: tuple[Event, ...]
    block_size: int = 16
    spare: int = _PLENTY
    seqs: int = 4
    tokens: int = 64
    encode: int = 64
    features: int | None = None
    images: int = 2**24
    prefix: bool = True
    drafts: int = 0
    told: bool = False
    rounds: int = 1
    closed: bool = False


def engine_of(bench: Bench, schedule: Schedule, quantization: str | None = None) -> Parts:
    names = [event.name for event in schedule.events if isinstance(event, Ask)]
    blocks = max(2, bench.blocks_for(names or ["short"], schedule.block_size) + schedule.spare)
    row = runner.Runner.bytes_per_feature_row(bench.model)
    parts = bench.parts(
        block_size=schedule.block_size,
        kv_cache_memory_bytes=bench.bytes_of(blocks, schedule.block_size),
        max_num_seqs=schedule.seqs,
        max_num_batched_tokens=max(schedule.seqs, schedule.tokens),
        max_encoder_tokens=schedule.encode,
        encoder_cache_bytes=None if schedule.features is None else schedule.features * row,
        image_cache_bytes=schedule.images,
        enable_prefix_caching=schedule.prefix,
        num_speculative_tokens=schedule.drafts,
        prompt_lookup_min=1,
        quantization=quantization,
    )
    assert parts.core.stats().blocks_total == blocks
    return parts


class Teller:
    """In place of an `NgramIndex`: proposes what will be answered, now and then with a mistake.

    Prompts of equal token ids have different pictures, so that some of it is wrong from the beginning.
    """

    def __init__(self, bench: Bench, asks: list[Ask]) -> None:
        self._texts = [
            bench.plain(ask.name).prompt + answer
            for ask in asks
            for answer in expected_of(bench, ask.name, ask.seed)[: ask.n]
        ]

    def propose(self, tokens: list[int], *, most: int) -> list[int]:
        count = len(tokens)
        fitting = [text for text in self._texts if len(text) > count and text[:count] == tokens]
        if not fitting:
            return []
        drafts = fitting[count % len(fitting)][count : count + most]
        if count % 3 == 0:
            place = count % len(drafts)
            drafts[place] = (drafts[place] + 1) % 100  # another token of the vocabulary
        return drafts


class Player:
    """Plays events on an engine and holds every answer to what is expected of it, unless not `exact`."""

    def __init__(self, bench: Bench, parts: Parts, *, exact: bool = True) -> None:
        self.bench = bench
        self.exact = exact
        self.core, self.preparer = parts.core, parts.preparer
        self.asked: list[tuple[Ask, Request]] = []
        self.steps = 0

    def play(self, events: tuple[Event, ...], *, closed: bool = False) -> None:
        for one in events:
            if isinstance(one, Ask):
                self._ask(one)
            elif isinstance(one, Abort) and self.asked:
                self.core.abort(self.asked[one.place % len(self.asked)][1].id)
            elif isinstance(one, Steps):
                for _ in range(one.count):
                    self._step()
        if closed:
            self.core.close()
        while self.core.has_work:
            self._step()
        self._check()

    def _ask(self, ask: Ask) -> None:
        params = SamplingParams(
            temperature=0 if ask.seed is None else 1,
            seed=ask.seed,
            max_tokens=ask.length,
            n=ask.n,
            prompt_logprobs=0 if ask.scores else None,
        )
        request, preparation = self.preparer.prepare(
            Prompt(QUESTIONS[ask.name]), params, request_id=str(len(self.asked)), priority=ask.priority
        )
        assert request.prompt == self.bench.plain(ask.name).prompt
        self.core.add(request, preparation)
        self.asked.append((ask, request))

    def _step(self) -> None:
        self.core.step()
        self.core.check_integrity()
        self.steps += 1
        assert self.steps < _MOST_STEPS, "the engine makes no progress"

    def _check(self) -> None:
        """All blocks and features are given back, and every answer is right; aborted ones as far as they got."""
        self.core.check_integrity()
        stats = self.core.stats()
        assert (stats.blocks_used, stats.waiting, stats.running) == (0, 0, 0)
        for ask, request in self.asked:
            output = self.core.output(request)
            assert output.error is None
            assert output.finished
            for index, answer in enumerate(output.outputs):
                expected = expected_of(self.bench, ask.name, ask.seed)[index][: ask.length]
                found = list(answer.token_ids)
                if answer.finish_reason == "abort":
                    assert request.aborted
                    expected = expected[: len(found)]
                assert found == expected or not self.exact, f"answer {index} to {ask}"
            if ask.scores and self.exact and not request.aborted:
                self._check_scores(ask, output)
            self.core.forget(request.id)
        self.asked.clear()

    def _check_scores(self, ask: Ask, output: RequestOutput) -> None:
        scores = output.prompt_logprobs
        assert scores is not None
        assert scores[0] is None
        prompt = self.bench.plain(ask.name).prompt
        found = [tops[token].logprob for tops, token in zip(scores[1:], prompt[1:], strict=True) if tops]
        assert found == pytest.approx(self.bench.prompt_scores(ask.name), abs=1e-3)


_own: dict[tuple[Path, str, int], list[list[int]]] = {}


def expected_of(bench: Bench, name: str, seed: int | None) -> list[list[int]]:
    """Three answers: greedy ones from transformers, sampled ones from an engine with this request alone."""
    if seed is None:
        return [bench.plain(name).tokens] * 3
    key = bench.folder, name, seed
    if key not in _own:
        parts = bench.parts(kv_cache_memory_bytes=2**20)
        params = SamplingParams(temperature=1, seed=seed, max_tokens=TOKENS, n=3)
        request, preparation = parts.preparer.prepare(Prompt(QUESTIONS[name]), params)
        parts.core.add(request, preparation)
        while parts.core.has_work:
            parts.core.step()
        _own[key] = [list(answer.token_ids) for answer in parts.core.output(request).outputs]
    return _own[key]


def run(bench: Bench, schedule: Schedule, quantization: str | None = None) -> Parts:
    parts = engine_of(bench, schedule, quantization)
    player = Player(bench, parts, exact=quantization is None)
    with pytest.MonkeyPatch.context() as patch:
        if schedule.told:
            teller = Teller(bench, [event for event in schedule.events if isinstance(event, Ask)])
            patch.setattr(core, "NgramIndex", lambda **options: teller)
        for _ in range(schedule.rounds):
            player.play(schedule.events, closed=schedule.closed)
    return parts


names = st.sampled_from(list(QUESTIONS))
asks = st.builds(
    Ask,
    name=names,
    length=st.sampled_from([1, 2, 7, TOKENS - 1, TOKENS, TOKENS]),
    n=st.sampled_from([1, 1, 1, 2, 3]),
    priority=st.sampled_from([0, 0, 0, 1, -1]),
    seed=st.sampled_from([None, None, None, 1, 2]),
    scores=st.sampled_from([False, False, False, True]),
)
steps = st.builds(Steps, st.integers(1, 12))
events = st.lists(
    st.one_of(asks, asks, asks, steps, steps, st.builds(Abort, st.integers(0, 20))),
    min_size=5,
    max_size=18,
).map(tuple)
schedules = st.builds(
    Schedule,
    events=events,
    block_size=st.sampled_from([1, 3, 3, 16, 32]),
    spare=st.sampled_from([0, 0, 0, 1, 3, _PLENTY]),
    seqs=st.sampled_from([1, 3, 6, 6]),
    tokens=st.sampled_from([1, 7, 7, 16, 64, 512]),
    encode=st.sampled_from([1, 8, 64]),
    features=st.sampled_from([0, 6, 20, None]),
    images=st.sampled_from([0, 2**24]),
    prefix=st.booleans(),
    drafts=st.sampled_from([0, 0, 1, 3, 8]),
    told=st.booleans(),
    rounds=st.sampled_from([1, 2]),
    closed=st.sampled_from([False, False, False, True]),
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedule=schedules)
def test_any_schedule(family_folder: Path, schedule: Schedule) -> None:
    parts = run(bench(family_folder), schedule)
    totals = parts.core.totals
    event(f"preempted: {totals.preemptions > 0}")
    event(f"drafts accepted: {totals.accepted > 0}")
    event(f"prefix found: {parts.core.stats().prefix_cache.hits > 0}")


@pytest.fixture
def module_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The language model of transformers computes, and not the engine's own layers."""
    monkeypatch.setattr(runner, "can_rewrite", lambda language_model: False)


EVERYTHING = tuple(
    one
    for place, name in enumerate(QUESTIONS)
    for one in (Ask(name, n=1 + (place % 5 == 0), priority=-(place % 3)), Steps(place % 4))
)


@pytest.mark.usefixtures("module_as_it_is")
def test_the_module_of_transformers_gives_the_same(family_folder: Path) -> None:
    schedule = Schedule(EVERYTHING, block_size=3, spare=9, tokens=23, drafts=3, features=20)
    assert run(bench(family_folder), schedule).core.totals.preemptions


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantized_models_end_every_answer(family_folder: Path, quantization: str) -> None:
    """Their numbers are others, and not the same in every batch; the books balance all the same."""
    aborts = tuple(Abort(place) for place in (3, 9, 12))
    schedule = Schedule((*EVERYTHING, *aborts), block_size=3, spare=9, tokens=23, drafts=3, features=20)
    assert run(bench(family_folder), schedule, quantization).core.totals.preemptions


# Each case is played for what it says, and it is shown to have happened.


def _preempted(parts: Parts) -> bool:
    return parts.core.totals.preemptions > 0


def _accepted(parts: Parts) -> bool:
    return parts.core.totals.accepted > 5


def _encoded_again(parts: Parts) -> bool:
    return parts.core.stats().encoder_cache.queries > parts.core.stats().encoder_cache.hits


CASES: dict[str, tuple[dict[str, Any], Callable[[Parts], bool]]] = {
    "few blocks": ({"spare": 2, "block_size": 3, "seqs": 6}, _preempted),
    "few blocks, none shared": ({"spare": 1, "block_size": 16, "seqs": 6, "prefix": False}, _preempted),
    "drafts": ({"drafts": 8}, _accepted),
    "right and wrong drafts in few blocks": (
        {"drafts": 8, "told": True, "spare": 2, "block_size": 1, "seqs": 6},
        lambda parts: _preempted(parts) and parts.core.totals.accepted > 50,
    ),
    "chunks that end inside of pictures": (
        {"tokens": 7, "encode": 1},
        lambda parts: parts.core.totals.steps > 100,
    ),
    "no feature kept": ({"features": 0, "images": 0, "prefix": False, "tokens": 7}, _encoded_again),
    "warm": ({"rounds": 2}, lambda parts: parts.core.stats().prefix_cache.hits > 300),
    "warm, pictures only": (
        {"rounds": 2, "prefix": False},
        lambda parts: parts.core.stats().encoder_cache.hits > 20,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_case(family_folder: Path, name: str) -> None:
    options, happened = CASES[name]
    assert happened(run(bench(family_folder), Schedule(EVERYTHING, **options)))


def test_a_seed_gives_one_text_in_any_company(family_folder: Path) -> None:
    asked = tuple(Ask(name, seed=seed, n=3) for name in ("text", "twice", "clip") for seed in (1, 2))
    for drafts in (0, 6):
        for others in ((), EVERYTHING):
            run(
                bench(family_folder),
                Schedule((*asked, *others), tokens=31, drafts=drafts, told=True, spare=4),
            )
    texts = [expected_of(bench(family_folder), "text", seed)[index] for seed in (1, 2) for index in (0, 1, 2)]
    assert len({tuple(text) for text in texts}) == 6
