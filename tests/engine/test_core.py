"""Steps put together: tokens, failures that stay with their requests, and books that balance."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from engine_parts import RuleRunner, answer_to, make_core, make_request

from sightline.engine.core import EngineCore
from sightline.engine.sampling.params import SamplingParams
from sightline.engine.scheduling.request import Request
from sightline.engine.scheduling.step import Step
from sightline.errors import UsageError


def params(length: int = 20, **options: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=length, **options)


def run(core: EngineCore, most: int = 500) -> None:
    for _ in range(most):
        if not core.has_work:
            return
        core.step()
        core.check_integrity()
    pytest.fail("the engine does not come to an end")


def tokens_of(core: EngineCore, request: Request) -> list[list[int]]:
    return [answer.token_ids for answer in core.output(request).outputs]


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(290) for _ in range(rng.randrange(1, 60))] for _ in range(count)]


@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("blocks", [24, 200])
def test_answers_are_those_of_the_model(blocks: int, drafts: int) -> None:
    core = make_core(RuleRunner(), blocks=blocks, num_speculative_tokens=drafts, prompt_lookup_min=1)
    requests = [make_request(str(i), prompt, params(30)) for i, prompt in enumerate(prompts(12))]
    for request in requests:
        core.add(request)
    run(core)
    for request in requests:
        assert tokens_of(core, request) == [answer_to(request.prompt, 30)]
    stats = core.stats()
    assert (stats.running, stats.waiting) == (0, 0)
    assert stats.totals.finished == {"length": 12}
    assert stats.totals.generation_tokens == 12 * 30
    assert stats.totals.prompt_tokens == sum(len(request.prompt) for request in requests)
    assert stats.totals.histograms["total"].count == 12
    assert (stats.totals.preemptions > 0) == (blocks == 24)


def test_guesses_save_steps() -> None:
    prompt = [5, *answer_to([5], 14)]  # what follows repeats it
    steps = []
    for drafts in (0, 4):
        runner = RuleRunner()
        core = make_core(runner, num_speculative_tokens=drafts, prompt_lookup_min=1)
        request = make_request("a", [*prompt, *prompt, 5], params(14))
        core.add(request)
        run(core)
        assert tokens_of(core, request) == [answer_to(request.prompt, 14)]
        steps.append(len(runner.steps))
        assert core.totals.accepted <= core.totals.drafted
        assert (core.totals.accepted > 0) == (drafts > 0)
    assert steps[1] < steps[0]


@pytest.mark.parametrize("drafts", [0, 3])
def test_what_breaks_a_step_fails_alone(drafts: int) -> None:
    runner = RuleRunner()
    core = make_core(runner, num_speculative_tokens=drafts, prompt_lookup_min=1)
    requests = [make_request(str(i), [i, 3, 4], params(10, n=1 + (i == 2))) for i in range(5)]
    for request in requests:
        core.add(request)

    def fail(step: Step) -> None:
        for chunk in step.chunks:
            if chunk.sequence.request.id == "1" and len(chunk.sequence.tokens) > 5:
                raise RuntimeError("out of luck")

    runner.before = fail
    run(core)
    outputs = [core.output(request) for request in requests]
    assert [output.error is None for output in outputs] == [True, False, True, True, True]
    assert "out of luck" in str(outputs[1].error)
    assert outputs[1].outputs[0].finish_reason == "error"
    assert outputs[1].outputs[0].token_ids == answer_to([1, 3, 4], len(outputs[1].outputs[0].token_ids))
    for request in (requests[0], *requests[2:]):
        assert tokens_of(core, request) == [answer_to(request.prompt, 10)] * len(request.sequences)
    assert core.stats().blocks_used == 0


def test_a_step_that_fails_once_fails_nobody() -> None:
    runner = RuleRunner()
    core = make_core(runner)
    requests = [make_request(str(i), [i, 3, 4], SamplingParams(seed=i, max_tokens=10)) for i in range(4)]
    for request in requests:
        core.add(request)

    def fail(step: Step) -> None:
        if len(step.chunks) > 1 and len(runner.steps) > 3:
            raise MemoryError("too many at once")

    runner.before = fail
    run(core)
    assert [core.output(request).outputs[0].finish_reason for request in requests] == ["length"] * 4


@pytest.mark.parametrize("same", [False, True])
def test_a_picture_that_cannot_be_encoded_fails_those_who_show_it(same: bool) -> None:
    """All are encoded in one group; who shows the broken one fails, and the others' features are made once."""
    runner = RuleRunner()
    core = make_core(runner)
    encoded: list[bytes] = []

    def encode(step: Step) -> None:
        keys = [request.media[index].key for request, index in step.encode]
        if b"bad" in keys:
            raise RuntimeError("a convolution failed")
        for request, index in step.encode:
            encoded.append(request.media[index].key)
            core._features.put(request.media[index].key, [torch.zeros(2, 1)])

    runner.before = encode
    keys = [b"a", b"bad", b"bad" if same else b"b", b"a"]
    requests = [make_request(str(i), [i, 3, 4, 5], params(5), media=key) for i, key in enumerate(keys)]
    for request in requests:
        core.add(request)
    run(core)
    failed = [core.output(request).error is not None for request in requests]
    assert failed == [key == b"bad" for key in keys]
    assert sorted(encoded) == sorted(set(keys) - {b"bad"})
    assert "convolution" in str(core.output(requests[1]).error)


def test_an_answer_that_cannot_take_its_token_fails_alone() -> None:
    core = make_core(RuleRunner())
    requests = [make_request(str(i), [i, 3, 4], params(6)) for i in range(3)]
    for request in requests:
        core.add(request)

    def refuse(choice: Any) -> bool:
        raise ValueError("no such token")

    requests[1].sequences[0].answer.accept = refuse  # type: ignore[method-assign]
    run(core)
    assert [core.output(request).error is None for request in requests] == [True, False, True]
    assert tokens_of(core, requests[2]) == [answer_to([2, 3, 4], 6)]


def test_stats_are_of_their_moment() -> None:
    core = make_core(RuleRunner())
    before = core.stats()
    core.add(make_request("a", [1], params(3)))
    run(core)
    assert before.totals.finished == {}
    assert before.totals.histograms["total"].count == 0
    assert core.stats().totals.finished == {"length": 1}


def test_nan_fails_one_request() -> None:
    runner = RuleRunner()
    core = make_core(runner)
    requests = [make_request(str(i), [i, 3, 4], params(6, n=1 + (i == 1))) for i in range(3)]
    for request in requests:
        core.add(request)
    runner.spoils.add("1")
    run(core)
    outputs = [core.output(request) for request in requests]
    assert [output.error is None for output in outputs] == [True, False, True]
    assert "nan" in str(outputs[1].error)
    assert [answer.finish_reason for answer in outputs[1].outputs] == ["error", "error"]
    assert outputs[2].outputs[0].token_ids == answer_to([2, 3, 4], 6)


def test_memory_that_runs_out_names_the_settings() -> None:
    runner = RuleRunner()
    core = make_core(runner)
    request = make_request("a", [1], params())
    core.add(request)

    def fail(step: Step) -> None:
        raise MemoryError("no room")

    runner.before = fail
    run(core)
    assert "max_num_batched_tokens" in str(core.output(request).error)


def test_answers_to_one_prompt() -> None:
    core = make_core(RuleRunner())
    request = make_request("a", list(range(30)), SamplingParams(temperature=0.2, n=3, max_tokens=9))
    core.add(request)
    run(core)
    assert [len(tokens) for tokens in tokens_of(core, request)] == [9, 9, 9]


def test_log_probabilities_of_a_prompt_in_chunks() -> None:
    core = make_core(RuleRunner(), max_num_batched_tokens=7)
    prompt = [9, *answer_to([9], 24), 4, 5]
    for name in ("a", "b"):  # the second would find its blocks in the cache
        request = make_request(name, prompt, params(3, prompt_logprobs=2))
        core.add(request)
        run(core)
        found = core.output(request).prompt_logprobs
        assert found is not None
        assert found[0] is None
        assert len(found) == len(prompt)
        for place, (token, one) in enumerate(zip(prompt[1:], found[1:], strict=True)):
            assert one is not None
            assert one[token].rank == (1 if place < 24 else one[token].rank)
            assert (one[token].logprob > -1) == (place < 24)


def test_aborts_at_any_moment_lose_no_block() -> None:
    rng = random.Random(1)
    core = make_core(RuleRunner(), blocks=30)
    open_: dict[str, Request] = {}
    ended = 0
    for number, prompt in enumerate(prompts(120, seed=2)):
        length = rng.randrange(1, 40)
        request = make_request(str(number), prompt, params(length, n=rng.choice((1, 1, 2))))
        core.add(request)
        open_[request.id] = request
        for _ in range(rng.randrange(5)):
            if open_ and rng.random() < 0.3:
                core.abort(rng.choice(sorted(open_)))
            for sequence in core.step():
                if sequence.request.finished and open_.pop(sequence.request.id, None):
                    core.forget(sequence.request.id)
                    ended += 1
            core.check_integrity()
    while core.has_work:
        for sequence in core.step():
            ended += open_.pop(sequence.request.id, None) is not None and sequence.request.finished
    assert ended <= 120
    core.check_integrity()
    assert sum(core.totals.finished.values()) >= 120
    assert core.totals.finished["abort"] > 10


def test_what_can_never_fit_is_refused() -> None:
    core = make_core(RuleRunner(), blocks=8)
    with pytest.raises(UsageError, match="KV cache of 32 tokens"):
        core.add(make_request("a", [1] * 30, params(10)))
    assert not core.has_work


def test_metrics_are_parts_of_the_whole() -> None:
    core = make_core(RuleRunner())
    request = make_request("a", [1] * 50, params(5))
    core.add(request)
    run(core)
    metrics = core.output(request).metrics
    assert metrics.time_to_first_token is not None
    assert 0 < metrics.prefill <= metrics.time_to_first_token <= metrics.total
    assert metrics.queue + metrics.prefill + metrics.decode_time <= metrics.total + 1e-6


def test_closing_ends_all() -> None:
    core = make_core(RuleRunner())
    requests = [make_request(str(i), [i], params()) for i in range(6)]
    for request in requests:
        core.add(request)
    core.step()
    core.close()
    assert all(core.output(request).outputs[0].finish_reason == "abort" for request in requests)
    assert not core.has_work
    core.check_integrity()
