"""Whatever the schedule, each answer is the one that its request gets alone, and no block or feature is lost."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import PLACEHOLDER, Model, Store, expected, make_request, run_all, run_step

from sightline.engine.scheduling.blocks import BlockPool
from sightline.engine.scheduling.request import Medium, Request, Span
from sightline.engine.scheduling.scheduler import Scheduler
from sightline.engine.scheduling.sequence import Status
from sightline.errors import UsageError


def _engine(
    *,
    blocks: int = 64,
    block_size: int = 4,
    prefix_caching: bool = True,
    store: Store | None = None,
    **limits: int,
) -> tuple[Scheduler, Model]:
    store = store or Store(1000)
    settings = {
        "max_num_seqs": 8,
        "max_num_batched_tokens": 32,
        "max_model_len": 4096,
        "max_encoder_tokens": 64,
        **limits,
    }
    pool = BlockPool(blocks, block_size, prefix_caching=prefix_caching)
    return Scheduler(pool, store, **settings), Model(blocks, block_size, store)


def _answers(request: Request) -> list[list[int]]:
    return [sequence.answer.tokens for sequence in request.sequences]


def _expected(request: Request) -> list[list[int]]:
    return [expected(request, index) for index in range(len(request.sequences))]


# Random schedules.


@dataclass
class _Piece:
    """Part of a prompt: text, or a medium in one or several spans."""

    text: list[int]
    medium: int | None = None
    spans: int = 1


@dataclass
class _Asked:
    pieces: list[_Piece]
    step: int
    limit: int
    n: int
    end: int | None
    priority: int
    adapter: str | None
    abort_after: int | None

    def build(self, id: str) -> Request:
        prompt: list[int] = []
        media: list[Medium] = []
        spans: list[Span] = []
        for piece in self.pieces:
            prompt += piece.text
            if piece.medium is None:
                continue
            # A medium's size belongs to what it is.
            rows = 1 + piece.medium * 3
            parts = min(piece.spans, rows)
            media.append(Medium("image" if parts == 1 else "video", bytes([piece.medium, parts]), rows))
            for part in range(parts):
                first, last = rows * part // parts, rows * (part + 1) // parts
                if part:
                    prompt.append(1)
                spans.append(Span(len(media) - 1, len(prompt), last - first, first))
                prompt += [PLACEHOLDER] * (last - first)
        return make_request(
            id,
            prompt or [0],
            limit=self.limit,
            n=self.n,
            end=self.end,
            media=media,
            spans=spans,
            priority=self.priority,
            adapter=self.adapter,
        )


_PIECES = st.builds(
    _Piece,
    # Few different texts, so that beginnings are often shared.
    text=st.sampled_from([[], [0], [0, 1], [0, 1, 2, 0, 1], [2] * 9, list(range(3)) * 5]),
    medium=st.none() | st.integers(0, 4),
    spans=st.integers(1, 3),
)
_ASKED = st.builds(
    _Asked,
    pieces=st.lists(_PIECES, min_size=1, max_size=4),
    step=st.integers(0, 20),
    limit=st.integers(1, 12) | st.integers(20, 40),
    n=st.sampled_from([1, 1, 1, 2, 3]),
    end=st.none() | st.integers(0, 2),
    priority=st.sampled_from([0, 0, 0, 1, -1]),
    adapter=st.sampled_from([None, None, "a"]),
    abort_after=st.sampled_from([None] * 8 + [0, 1, 3, 7, 15]),
)


@settings(max_examples=300, deadline=None)
@given(
    asked=st.lists(_ASKED, min_size=1, max_size=12),
    block_size=st.integers(1, 9),
    spare=st.integers(0, 8),
    seqs=st.integers(1, 6),
    tokens=st.integers(0, 24),
    encoder=st.integers(1, 30),
    capacity=st.integers(1, 40),
    partial=st.integers(1, 4),
    prefix_caching=st.booleans(),
    wrong=st.sampled_from([0.0, 0.3, 1.0]),
    chaos=st.sampled_from([0.0, 0.0, 0.05]),
    seed=st.integers(0, 1000),
)
def test_any_schedule_gives_what_each_request_gets_alone(
    asked: list[_Asked],
    block_size: int,
    spare: int,
    seqs: int,
    tokens: int,
    encoder: int,
    capacity: int,
    partial: int,
    prefix_caching: bool,
    wrong: float,
    chaos: float,
    seed: int,
) -> None:
    chance = random.Random(seed)
    requests = [one.build(str(number)) for number, one in enumerate(asked)]
    # The largest fits, and little beside it.
    most = max(request.sequences[0].most_computed for request in requests)
    scheduler, model = _engine(
        blocks=-(-most // block_size) + spare,
        block_size=block_size,
        prefix_caching=prefix_caching,
        store=Store(capacity),
        max_num_seqs=seqs,
        max_num_batched_tokens=seqs + tokens,
        max_encoder_tokens=encoder,
        max_partial_prefills=partial,
    )
    answers = [_expected(request) for request in requests]
    preempted, steps = 0, 0
    while steps <= 20 or scheduler.has_work:
        for one, request in zip(asked, requests, strict=True):
            if one.step == steps:
                scheduler.add(request)
            if one.abort_after is not None and one.step + one.abort_after == steps:
                request.abort()
        for sequence in scheduler.running:
            sequence.drafts = _drafts(sequence, answers[int(sequence.request.id)], wrong, chance)
        step = scheduler.schedule()
        scheduler.check_integrity()
        assert step.tokens <= seqs + tokens
        assert len(scheduler.running) <= seqs
        if chance.random() < chaos:
            # Between schedule and commit.
            chance.choice(requests).abort()
        accepted = model.run(step)
        if chance.random() < chaos:
            # A failed step: its requests are thrown out, and nothing is committed for them.
            for request in {chunk.sequence.request for chunk in step.chunks[:1]}:
                scheduler.abort(request.id)
                scheduler.check_integrity()
        scheduler.commit(step, accepted)
        scheduler.check_integrity()
        if chance.random() < 0.1:
            model.store.lose()
        preempted += len(step.preempted)
        steps += 1
        assert steps < 3000, "it does not come to an end"
    for request, answer in zip(requests, answers, strict=True):
        assert request.finished
        for taken, wanted in zip(_answers(request), answer, strict=True):
            assert taken == (wanted[: len(taken)] if request.aborted else wanted)
    assert scheduler.pool.used_blocks == 0
    assert not any(model.store.pins.values())


def _drafts(sequence, answers: list[list[int]], wrong: float, chance: random.Random) -> list[int]:
    """What really follows, with mistakes, and sometimes beyond the end."""
    known = len(sequence.tokens) - sequence.prompt_length
    right = [*answers[sequence.index][known:], 0, 0][: chance.randint(0, 6)]
    return [(token + 1) % 3 if chance.random() < wrong else token for token in right]


# One behaviour at a time.


def _chunks(step) -> list[tuple[str, int, int]]:
    return [(chunk.sequence.request.id, chunk.start, len(chunk.tokens)) for chunk in step.chunks]


def _image(id: str, before: int, rows: int, behind: int, *, key: bytes = b"a", **options) -> Request:
    prompt = [0] * before + [PLACEHOLDER] * rows + [1] * behind
    return make_request(
        id, prompt, media=[Medium("image", key, rows)], spans=[Span(0, before, rows, 0)], **options
    )


def test_decodes_come_first_and_prompts_share_the_rest() -> None:
    scheduler, model = _engine(max_num_batched_tokens=10)
    scheduler.add(make_request("a", [0] * 3))
    run_step(scheduler, model)
    scheduler.add(make_request("b", [1] * 12))
    scheduler.add(make_request("c", [2] * 5))
    assert _chunks(run_step(scheduler, model)) == [("a", 3, 1), ("b", 0, 9)]
    assert _chunks(run_step(scheduler, model)) == [("a", 4, 1), ("b", 9, 3), ("c", 0, 5)]
    assert _chunks(run_step(scheduler, model)) == [("a", 5, 1), ("b", 12, 1), ("c", 5, 1)]


def test_a_chunk_may_be_smaller_than_a_block() -> None:
    scheduler, model = _engine(block_size=16, max_num_seqs=2, max_num_batched_tokens=3)
    request = make_request("a", [0, 1, 2, 0, 1, 2, 0], limit=2)
    scheduler.add(request)
    assert [_chunks(step) for step in run_all(scheduler, model)] == [
        [("a", 0, 3)],
        [("a", 3, 3)],
        [("a", 6, 1)],
        [("a", 7, 1)],
    ]
    assert _answers(request) == _expected(request)


def test_a_large_prompt_gets_on_behind_a_stream_of_small_ones() -> None:
    scheduler, model = _engine(max_num_seqs=4, max_num_batched_tokens=8, blocks=64)
    for number in range(6):
        scheduler.add(make_request(f"before {number}", [number % 3] * 6, limit=3))
    large = make_request("large", [0, 1] * 40, limit=2)
    scheduler.add(large)
    for number in range(200):
        scheduler.add(make_request(f"{number}", [number % 3] * 6, limit=3))
        run_step(scheduler, model)
        if large.finished:
            break
    # 6 x 6 tokens before it and its own 80, at 5 and more a step.
    assert number < 30


def test_a_more_important_prompt_overtakes_one_that_is_under_way() -> None:
    scheduler, model = _engine(max_num_batched_tokens=10)
    scheduler.add(make_request("long", [0] * 50))
    run_step(scheduler, model)
    scheduler.add(make_request("urgent", [1] * 6, priority=-1))
    assert _chunks(run_step(scheduler, model)) == [("urgent", 0, 6), ("long", 10, 4)]


def test_only_so_many_prompts_are_left_unfinished() -> None:
    # No image fits beside another, so each prompt stops in front of its own.
    scheduler, model = _engine(max_encoder_tokens=5, max_partial_prefills=2, max_num_batched_tokens=100)
    for number in range(5):
        scheduler.add(_image(str(number), 4, 5, 1, key=bytes([number])))
    assert _chunks(run_step(scheduler, model)) == [("0", 0, 10), ("1", 0, 4), ("2", 0, 4)]


def test_a_prompt_stops_in_front_of_an_image_beyond_the_encoder_budget() -> None:
    scheduler, model = _engine(max_encoder_tokens=12, max_num_batched_tokens=100)
    requests = [_image(name, 3, 8, 2, key=name.encode()) for name in "ab"]
    for request in requests:
        scheduler.add(request)
    first = run_step(scheduler, model)
    assert _chunks(first) == [("a", 0, 13), ("b", 0, 3)]
    assert first.encode == [(requests[0], 0)]
    second = run_step(scheduler, model)
    assert _chunks(second) == [("a", 13, 1), ("b", 3, 10)]
    assert second.encode == [(requests[1], 0)]


def test_a_single_medium_may_exceed_the_encoder_budget_and_the_store() -> None:
    scheduler, model = _engine(max_encoder_tokens=4, store=Store(4))
    request = _image("a", 2, 9, 2)
    scheduler.add(request)
    run_all(scheduler, model, most=10)
    assert _answers(request) == _expected(request)


def test_an_image_is_encoded_once_for_all_who_show_it() -> None:
    scheduler, model = _engine(max_num_batched_tokens=100, prefix_caching=False)
    requests = [_image(name, before, 8, 2) for name, before in (("a", 3), ("b", 1))]
    for request in requests:
        scheduler.add(request)
    run_all(scheduler, model)
    assert model.store.encoded == [b"a"]
    assert [_answers(request) for request in requests] == [_expected(request) for request in requests]


def test_features_are_held_until_their_last_token_is_computed() -> None:
    scheduler, model = _engine(max_num_batched_tokens=8)
    request = _image("a", 3, 10, 20)
    scheduler.add(request)
    held = []
    for _ in range(3):
        run_step(scheduler, model)
        held.append(model.store.pins[b"a"])
    assert held == [1, 0, 0]


def test_features_that_were_lost_are_encoded_again() -> None:
    scheduler, model = _engine(prefix_caching=False)
    for name in "ab":
        request = _image(name, 3, 8, 2)
        scheduler.add(request)
        run_all(scheduler, model)
        model.store.lose()
        assert _answers(request) == _expected(request)
    assert model.store.encoded == [b"a", b"a"]


def test_an_image_whose_blocks_are_found_is_not_encoded() -> None:
    scheduler, model = _engine()
    for name in "ab":
        scheduler.add(_image(name, 4, 8, 2))
        run_all(scheduler, model)
        model.store.lose()
    assert model.store.encoded == [b"a"]


def test_the_same_text_with_another_image_shares_nothing_behind_it() -> None:
    scheduler, model = _engine()
    requests = [_image(name, 5, 6, 5, key=name.encode()) for name in "ab"]
    for request in requests:
        scheduler.add(request)
        run_all(scheduler, model)
        assert _answers(request) == _expected(request)
    assert requests[1].cached_tokens == 4


def test_blocks_run_out_and_the_newest_computes_again() -> None:
    scheduler, model = _engine(blocks=8, block_size=2, max_num_seqs=2)
    first, second = make_request("first", [0] * 4, limit=9), make_request("second", [1] * 4, limit=9)
    scheduler.add(first)
    scheduler.add(second)
    steps = run_all(scheduler, model)
    assert next(sequence.request.id for step in steps for sequence in step.preempted) == "second"
    assert first.sequences[0].preemptions == 0
    assert first.sequences[0].finished_at < second.sequences[0].finished_at
    assert [_answers(first), _answers(second)] == [_expected(first), _expected(second)]


def test_the_least_important_is_preempted_for_one_that_waits() -> None:
    scheduler, model = _engine(blocks=8, block_size=2)
    low = make_request("low", [0] * 10, limit=6, priority=1)
    scheduler.add(low)
    run_step(scheduler, model)
    equal = make_request("equal", [1] * 8, limit=2, priority=1)
    scheduler.add(equal)
    assert run_step(scheduler, model).preempted == []
    high = make_request("high", [1] * 8, limit=2)
    scheduler.add(high)
    step = run_step(scheduler, model)
    assert step.preempted == low.sequences
    assert _chunks(step) == [("high", 0, 8)]
    run_all(scheduler, model)
    assert [_answers(one) for one in (low, equal, high)] == [_expected(one) for one in (low, equal, high)]


def test_a_sequence_is_preempted_in_the_middle_of_its_prompt() -> None:
    scheduler, model = _engine(blocks=10, block_size=2, max_num_seqs=3, max_num_batched_tokens=4)
    old = make_request("old", [0] * 2, limit=18)
    scheduler.add(old)
    run_step(scheduler, model)
    new = make_request("new", [1] * 12, limit=2)
    scheduler.add(new)
    run_step(scheduler, model)
    assert 0 < new.sequences[0].computed < 12
    urgent = make_request("urgent", [2] * 6, limit=9, priority=-1)
    scheduler.add(urgent)
    run_all(scheduler, model)
    assert new.sequences[0].preemptions > 0
    assert [_answers(one) for one in (old, new, urgent)] == [_expected(one) for one in (old, new, urgent)]


def test_a_prompt_takes_blocks_from_a_less_important_answer() -> None:
    scheduler, model = _engine(blocks=9, block_size=2, max_num_seqs=2, max_num_batched_tokens=3)
    low = make_request("low", [0] * 2, limit=13, priority=1)
    scheduler.add(low)
    run_step(scheduler, model)
    high = make_request("high", [1] * 11, limit=2)
    scheduler.add(high)
    chunks, preempted = [], []
    while not high.finished:
        step = run_step(scheduler, model)
        chunks.append(_chunks(step)[-1])
        preempted += step.preempted
    # At the sixth no block is left, and the other has to give its own back.
    assert chunks == [("high", at, 2) for at in (0, 2, 4, 6, 8)] + [("high", 10, 1), ("high", 11, 1)]
    assert preempted == low.sequences
    run_all(scheduler, model)
    assert [_answers(low), _answers(high)] == [_expected(low), _expected(high)]


def test_the_cost_of_a_step_grows_with_what_runs_alone() -> None:
    calls = []
    for blocks, waiting in ((200, 0), (100_000, 0), (100_000, 500)):
        scheduler, model = _engine(blocks=blocks, block_size=16, max_num_seqs=32, max_num_batched_tokens=400)
        for number in range(32 + waiting):
            scheduler.add(make_request(f"{number}", [number] * 10, limit=64))
        for _ in range(3):
            step = scheduler.schedule()
            scheduler.commit(step, model.run(step))
        assert step.tokens == 32
        calls.append(
            _calls(lambda scheduler=scheduler, step=step: scheduler.commit(scheduler.schedule(), {}))
        )
    assert calls[0] == calls[1]
    # The wish to look at the first that waits.
    assert calls[2] <= calls[1] + 10
    assert calls[0] < 32 * 40


def _calls(act) -> int:
    """How many functions, Python's own included, are called."""
    count = 0

    def see(frame, event: str, argument) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(see)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count


def test_prompts_do_not_start_on_blocks_that_others_are_about_to_need() -> None:
    scheduler, model = _engine(blocks=10, block_size=2, max_num_batched_tokens=8)
    first, second = (make_request(name, [number] * 14, limit=2) for number, name in enumerate(("a", "b")))
    scheduler.add(first)
    scheduler.add(second)
    matched = []
    match = scheduler.pool.match
    scheduler.pool.match = lambda sequence: (matched.append(sequence.request.id), match(sequence))
    steps = [_chunks(step) for step in run_all(scheduler, model)]
    assert steps[:3] == [[("a", 0, 8)], [("a", 8, 6)], [("a", 14, 1)]]
    assert first.sequences[0].preemptions == second.sequences[0].preemptions == 0
    # The second is looked up once in vain, and again when the first has left.
    assert matched == ["a", "b", "b"]


def test_no_more_are_preempted_than_is_needed() -> None:
    scheduler, model = _engine(blocks=12, block_size=2)
    low = [make_request(name, [number] * 6, limit=3, priority=1) for number, name in enumerate("abc")]
    for request in low:
        scheduler.add(request)
    run_step(scheduler, model)
    scheduler.add(make_request("high", [2, 1, 0], limit=1))
    assert run_step(scheduler, model).preempted == low[2].sequences


def test_what_is_preempted_does_not_come_back_in_the_same_step() -> None:
    scheduler, model = _engine(blocks=8, block_size=2, max_num_batched_tokens=8)
    low = make_request("low", [0] * 12, limit=2, priority=1)
    scheduler.add(low)
    run_step(scheduler, model)
    high = make_request("high", [1] * 3, limit=1)
    scheduler.add(high)
    step = run_step(scheduler, model)
    assert step.preempted == low.sequences
    # Its blocks can still be found, and beside the other's there is room for the rest of it.
    assert _chunks(step) == [("high", 0, 3)]
    run_all(scheduler, model)
    assert [_answers(low), _answers(high)] == [_expected(low), _expected(high)]


def test_a_prompt_that_is_wholly_cached_computes_its_last_block() -> None:
    scheduler, model = _engine(block_size=4)
    for name in "ab":
        scheduler.add(make_request(name, [0, 1, 2, 0] * 2))
        step = run_step(scheduler, model)
        run_all(scheduler, model)
    assert _chunks(step) == [("b", 4, 4)]


def test_a_follow_up_finds_prompt_and_answer() -> None:
    scheduler, model = _engine(block_size=2)
    first = make_request("first", [0, 1, 2], limit=6)
    scheduler.add(first)
    run_all(scheduler, model)
    second = make_request("second", [0, 1, 2, *first.sequences[0].answer.tokens, 2, 2])
    scheduler.add(second)
    run_all(scheduler, model)
    assert second.cached_tokens == 8
    assert (scheduler.pool.queries, scheduler.pool.hits) == (3 + 11, 8)


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_the_answers_to_one_prompt_share_its_blocks(prefix_caching: bool) -> None:
    scheduler, model = _engine(prefix_caching=prefix_caching, max_num_batched_tokens=100)
    request = make_request("a", [0, 1, 2] * 6, n=3)
    scheduler.add(request)
    assert _chunks(run_step(scheduler, model)) == [("a", 0, 18)]
    assert _chunks(run_step(scheduler, model)) == [("a", 18, 1), ("a", 16, 2), ("a", 16, 2)]
    tables = [sequence.blocks for sequence in request.sequences]
    assert tables[0][:4] == tables[1][:4] == tables[2][:4]
    assert scheduler.pool.used_blocks == 4 + 3
    run_all(scheduler, model)
    assert _answers(request) == _expected(request)


def test_without_prefix_caching_nothing_is_left_to_be_found() -> None:
    scheduler, model = _engine(prefix_caching=False)
    for _ in range(2):
        request = make_request("same id", [0, 1, 2] * 6, n=2)
        scheduler.add(request)
        run_all(scheduler, model)
        assert request.cached_tokens == 0


def test_without_prefix_caching_an_aborted_prompt_is_not_found_either() -> None:
    scheduler, model = _engine(prefix_caching=False)
    for _ in range(2):
        request = make_request("same id", [0, 1, 2] * 6, n=2)
        scheduler.add(request)
        run_step(scheduler, model)
        assert request.cached_tokens == 0
        scheduler.abort("same id")
    assert scheduler.pool.used_blocks == 0


def test_prompt_logprobs_compute_every_prompt_token() -> None:
    scheduler, model = _engine(max_num_batched_tokens=100)
    prompt = [0, 1, 2] * 6
    scheduler.add(make_request("before", prompt))
    run_all(scheduler, model)
    request = make_request("logged", prompt, n=2, prompt_logprobs=0)
    scheduler.add(request)
    assert _chunks(run_step(scheduler, model)) == [("logged", 0, 18)]
    assert _chunks(run_step(scheduler, model)) == [("logged", 18, 1), ("logged", 16, 2)]


def test_wrong_drafts_are_rolled_back_and_right_ones_kept() -> None:
    scheduler, model = _engine()
    request = make_request("a", [0, 1, 2], limit=10)
    (sequence,), (answer,) = request.sequences, _expected(request)
    scheduler.add(request)
    run_step(scheduler, model)
    sequence.drafts = [answer[1], answer[2], (answer[3] + 1) % 3, 0]
    (chunk,) = run_step(scheduler, model).chunks
    assert (chunk.tokens[0], chunk.drafts, chunk.samples) == (answer[0], 4, True)
    assert sequence.tokens[3:] == answer[:4]
    assert (sequence.computed, sequence.drafts) == (3 + 3, [])
    run_all(scheduler, model)
    assert _answers(request) == [answer]


def test_drafts_leave_room_for_prompts_and_stop_at_the_limit() -> None:
    for limit, drafts in ((4, 2), (20, 3)):
        scheduler, model = _engine(max_num_batched_tokens=8, max_num_seqs=2)
        first = make_request("first", [0, 1, 2], limit=limit)
        scheduler.add(first)
        run_step(scheduler, model)
        first.sequences[0].drafts = [0] * 8
        scheduler.add(make_request("second", [0] * 20))
        # 3 answer tokens are left: 2 of them can be drafts. Else half of the 7 tokens beside its own.
        assert _chunks(run_step(scheduler, model)) == [("first", 3, 1 + drafts), ("second", 0, 7 - drafts)]


def test_drafts_take_no_block_that_a_certain_token_needs() -> None:
    scheduler, model = _engine(blocks=4, block_size=4, max_num_seqs=2)
    requests = [make_request(name, prompt, limit=8) for name, prompt in (("a", [0] * 4), ("b", [1] * 4))]
    for request in requests:
        scheduler.add(request)
    run_step(scheduler, model)
    requests[0].sequences[0].drafts = [0] * 4
    step = run_step(scheduler, model)
    assert step.preempted == []
    assert _chunks(step) == [("a", 4, 1), ("b", 4, 1)]


def test_drafts_leave_a_block_for_everyone_that_runs() -> None:
    scheduler, model = _engine(blocks=5, block_size=4, max_num_seqs=2)
    requests = [make_request(name, prompt, limit=12) for name, prompt in (("a", [0] * 4), ("b", [1] * 4))]
    for request in requests:
        scheduler.add(request)
    run_step(scheduler, model)
    requests[0].sequences[0].drafts = [0] * 10
    step = run_step(scheduler, model)
    assert step.preempted == []
    assert _chunks(step) == [("a", 4, 4), ("b", 4, 1)]


def test_an_abort_takes_effect_in_the_next_schedule() -> None:
    scheduler, model = _engine(max_num_seqs=1)
    running, waiting = make_request("running", [0] * 9, n=2), make_request("waiting", [1] * 9)
    scheduler.add(running)
    scheduler.add(waiting)
    step = scheduler.schedule()
    running.abort()
    waiting.abort()
    running.abort()
    scheduler.commit(step, model.run(step))
    scheduler.check_integrity()
    assert not running.finished
    step = run_step(scheduler, model)
    assert (step.aborted, step.chunks) == ([running, waiting], [])
    assert not scheduler.has_work
    assert [answer.reason for one in (running, waiting) for answer in _of(one)] == ["abort"] * 3
    assert scheduler.pool.used_blocks == 0


def _of(request: Request):
    return [sequence.answer for sequence in request.sequences]


def test_a_request_aborted_before_it_is_added_never_runs() -> None:
    scheduler, model = _engine()
    request = make_request("a", [0])
    request.abort()
    scheduler.add(request)
    assert run_step(scheduler, model).chunks == []
    assert request.finished


def test_a_failed_step_is_undone_by_aborting_its_requests() -> None:
    scheduler, model = _engine()
    request = _image("a", 3, 8, 2)
    scheduler.add(request)
    scheduler.schedule()
    request.sequences[0].answer.finish("error")
    scheduler.abort("a")
    scheduler.check_integrity()
    assert not scheduler.has_work
    assert request.finished
    assert model.store.rows == {}
    again = _image("a", 3, 8, 2)
    scheduler.add(again)
    run_all(scheduler, model)
    assert _answers(again) == _expected(again)


def test_a_token_that_was_not_chosen_is_computed_again() -> None:
    scheduler, model = _engine()
    request = make_request("a", [0, 1, 2])
    scheduler.add(request)
    scheduler.commit(scheduler.schedule(), {})
    scheduler.check_integrity()
    assert _chunks(run_step(scheduler, model)) == [("a", 2, 1)]
    assert request.sequences[0].computed == 3


def test_times_are_marked_in_order() -> None:
    scheduler, model = _engine(max_num_batched_tokens=8)
    request = make_request("a", [0] * 20)
    scheduler.add(request)
    run_all(scheduler, model)
    (sequence,) = request.sequences
    assert sequence.status is Status.FINISHED
    marks = [sequence.arrived_at, sequence.scheduled_at, sequence.first_token_at, sequence.finished_at]
    assert marks == sorted(marks)
    assert len(set(marks)) == 4


@pytest.mark.parametrize(
    ("prompt", "limit", "words"),
    [
        (0, 4, "the prompt is empty"),
        (100, 4, "a prompt of 100 tokens .* max_model_len 100"),
        (98, 4, "98 prompt tokens and max_tokens 4 exceed max_model_len 100"),
        (60, 30, "60 prompt tokens and up to 30 answer tokens .* KV cache of 64 tokens; .*kv_cache_memory"),
    ],
)
def test_what_can_never_be_served_is_refused_with_the_number_and_the_setting(
    prompt: int, limit: int, words: str
) -> None:
    scheduler, _ = _engine(blocks=16, max_model_len=100)
    with pytest.raises(UsageError, match=words):
        scheduler.add(make_request("a", [0] * prompt, limit=limit))
    assert not scheduler.has_work


def test_what_just_fits_is_served() -> None:
    scheduler, model = _engine(blocks=16, max_model_len=100)
    request = make_request("a", [0] * 60, limit=5)
    scheduler.add(request)
    run_all(scheduler, model)
    assert _answers(request) == _expected(request)


def test_an_id_is_served_once_at_a_time() -> None:
    scheduler, _ = _engine()
    scheduler.add(make_request("a", [0]))
    with pytest.raises(UsageError, match="request a is already being served"):
        scheduler.add(make_request("a", [0]))


def test_a_budget_below_one_token_for_each_answer_is_refused() -> None:
    with pytest.raises(UsageError, match="max_num_batched_tokens is 7, but each of max_num_seqs 8"):
        _engine(max_num_batched_tokens=7)
