"""Streams to coroutines and threads: nothing lost, nobody left waiting, and no reader holds the engine."""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from engine_parts import PlainPreparer, RuleRunner, answer_to, make_core
from tiny import make_tokenizer

from sightline.engine import async_engine
from sightline.engine.async_engine import AsyncEngine
from sightline.engine.errors import EngineDied, EngineFull, EngineStopped
from sightline.engine.sampling.params import SamplingParams
from sightline.engine.scheduling.step import Step
from sightline.errors import SightlineError


class Bench:
    """An engine whose parts a test can reach."""

    def __init__(self, *, in_turn: bool = True, **options: Any) -> None:
        self.runner = RuleRunner()
        self.preparer = PlainPreparer()
        self.core = make_core(self.runner, **options)
        self.engine = AsyncEngine(self.core, self.preparer, in_turn=in_turn)  # type: ignore[arg-type]
        self.gate = threading.Event()

    def hold(self) -> None:
        """Let no step be computed until `gate` is set."""

        def wait(step: Step) -> None:
            self.gate.wait(20)

        self.runner.before = wait


@pytest.fixture(params=[True, False], ids=["in-turn", "beside"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    bench = Bench(in_turn=request.param)
    yield bench
    bench.gate.set()
    bench.engine.close()


def params(length: int = 12, **options: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=length, **options)


def decoded(tokens: list[int]) -> str:
    """The text of an answer that its length ended: without half a character."""
    return str(make_tokenizer().decode(tokens, skip_special_tokens=True)).rstrip("\ufffd")


def test_threads_read_what_the_engine_says(bench: Bench) -> None:
    streams = [bench.engine.add([i, 5, 6], params()) for i in range(9)]
    for number, stream in enumerate(streams):
        expected = answer_to([number, 5, 6], 12)
        deltas = list(stream)
        assert [token for delta in deltas for token in delta.token_ids] == expected
        assert "".join(delta.text for delta in deltas) == decoded(expected)
        assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["length"]
        assert deltas[-1].finish_reason == "length"
        assert stream.result().outputs[0].token_ids == expected
    assert bench.engine.stalled() == 0


def test_answers_that_end_in_the_same_step_all_tell_their_end(bench: Bench) -> None:
    deltas = list(bench.engine.add([3, 5], SamplingParams(n=3, max_tokens=9, ignore_eos=True)))
    ends = {delta.index: delta.finish_reason for delta in deltas if delta.finish_reason is not None}
    assert ends == {0: "length", 1: "length", 2: "length"}
    for index in range(3):
        assert sum(len(delta.token_ids) for delta in deltas if delta.index == index) == 9


def test_coroutines_read_it_too(bench: Bench) -> None:
    async def read(number: int) -> list[int]:
        stream = bench.engine.add([number, 5, 6], params())
        assert (await stream.opened()).prompt_token_ids == [number, 5, 6]
        return [token async for delta in stream for token in delta.token_ids]

    async def play() -> list[list[int]]:
        return await asyncio.gather(*(read(number) for number in range(20)))

    assert asyncio.run(play()) == [answer_to([number, 5, 6], 12) for number in range(20)]


def test_a_reader_that_stops_holds_nobody(bench: Bench) -> None:
    slow = bench.engine.add([1], params(150, n=2))
    first = next(slow)
    assert first.finish_reason is None
    assert bench.engine.add([2], params(3)).result(20).finished
    slow.result(20)
    rest = list(slow)
    assert len(rest) <= 3  # joined to one piece for each answer
    found: dict[int, list[int]] = {0: [], 1: []}
    for delta in [first, *rest]:
        found[delta.index] += delta.token_ids
    assert list(found.values()) == [answer_to([1], 150)] * 2


def test_abort_of_running_and_waiting_requests(bench: Bench) -> None:
    bench.hold()
    streams = [bench.engine.add([i], params(100)) for i in range(30)]
    streams[29].abort()
    bench.engine.abort(streams[0].id)
    bench.engine.abort("nobody")
    bench.gate.set()
    for stream in (streams[0], streams[29]):
        output = stream.result(20)
        assert output.outputs[0].finish_reason == "abort"
        assert list(stream)[-1].finish_reason == "abort"
    assert all(stream.result(20).outputs[0].finish_reason == "length" for stream in streams[1:29])
    assert streams[29].id not in bench.preparer.prepared
    bench.core.check_integrity()


def test_only_some_are_prepared_ahead(bench: Bench) -> None:
    bench.hold()
    streams = [bench.engine.add([i] * 30, params(2)) for i in range(40)]
    time.sleep(0.3)
    assert len(bench.preparer.prepared) <= 3 * 4
    assert bench.engine.stats().preparing >= 28
    bench.gate.set()
    assert all(stream.result(20).finished for stream in streams)


def test_a_prompt_that_cannot_be_used_is_an_error_of_its_stream(bench: Bench) -> None:
    bad, good = bench.engine.add([299], params()), bench.engine.add([1], params())
    with pytest.raises(SightlineError, match="begins with 299"):
        bad.result(20)
    with pytest.raises(SightlineError, match="begins with 299"):
        list(bad)
    too_long = bench.engine.add([1] * 150, params(100))
    with pytest.raises(SightlineError, match="max_model_len 200"):
        too_long.wait_opened(20)
    assert good.result(20).finished


def test_the_line_is_bounded() -> None:
    bench = Bench(max_waiting=3)
    bench.hold()
    streams = [bench.engine.add([i], params()) for i in range(7)]
    with pytest.raises(EngineFull, match="max_waiting"):
        bench.engine.add([9], params())
    bench.gate.set()
    assert all(stream.result(20).finished for stream in streams)
    assert bench.engine.add([9], params()).result(20).finished
    bench.engine.close()


def test_more_important_requests_run_first() -> None:
    bench = Bench(max_num_seqs=1)
    bench.hold()
    order: list[str] = []
    streams = [
        bench.engine.add([1], params(3), request_id=str(-p), priority=p, on_end=lambda s: order.append(s.id))
        for p in (0, 0 - 1, -3, -2)
        if p or not order
    ]
    bench.gate.set()
    for stream in streams:
        stream.result(20)
    assert order.index("3") < order.index("2") < order.index("1")
    bench.engine.close()


def test_two_requests_of_one_name(bench: Bench) -> None:
    bench.hold()
    first = bench.engine.add([1], params(), request_id="a")
    with pytest.raises(SightlineError, match="'a' already"):
        bench.engine.add([1], params(), request_id="a")
    bench.gate.set()
    first.result(20)
    assert bench.engine.add([1], params(), request_id="a").result(20).finished


def test_drain_lets_all_end(bench: Bench) -> None:
    streams = [bench.engine.add([i], params(60)) for i in range(9)]
    assert bench.engine.drain(20)
    assert all(stream.ended for stream in streams)
    assert all(stream.output.outputs[0].finish_reason == "length" for stream in streams)
    with pytest.raises(EngineStopped):
        bench.engine.add([1], params())


def test_drain_gives_up(bench: Bench) -> None:
    bench.hold()
    bench.engine.add([1], params())
    assert not bench.engine.drain(0.1)


def test_closing_leaves_nobody_waiting(bench: Bench) -> None:
    streams = [bench.engine.add([i], params(190)) for i in range(30)]
    next(streams[0])
    bench.engine.close()
    for stream in streams:
        assert stream.result(5).outputs[0].finish_reason in ("abort", "length")
        assert list(stream) == [] or stream.ended
    assert not bench.engine.alive
    bench.engine.close()
    bench.core.check_integrity()


def test_a_dead_thread_fails_whoever_waits(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def die(step: Step) -> None:
        bench.gate.wait(20)
        raise SystemExit("pulled the plug")

    bench.runner.before = die
    streams = [bench.engine.add([i], params()) for i in range(12)]
    bench.gate.set()
    for stream in streams:
        with pytest.raises(EngineDied, match="died"):
            stream.result(20)
    with pytest.raises(EngineDied, match="died"):
        bench.engine.add([1], params())
    assert not bench.engine.alive
    assert "the engine's thread died" in caplog.text


def test_a_failing_step_ends_with_an_error_and_the_engine_goes_on(bench: Bench) -> None:
    def fail(step: Step) -> None:
        bench.runner.before = lambda step: None
        raise RuntimeError("once")

    bench.runner.before = fail
    output = bench.engine.add([1], params()).result(20)
    assert "once" in str(output.error)
    assert output.outputs[0].finish_reason == "error"
    assert bench.engine.add([1], params()).result(20).outputs[0].token_ids == answer_to([1], 12)


def test_a_stuck_step_shows(bench: Bench) -> None:
    bench.hold()
    stream = bench.engine.add([1], params())
    time.sleep(0.3)
    assert bench.engine.stalled() > 0.1
    bench.gate.set()
    stream.result(20)
    assert bench.engine.stalled() == 0


def test_a_kept_stream_keeps_no_request(bench: Bench) -> None:
    requests: list[weakref.ref[Any]] = []
    prepare = bench.preparer.prepare

    def watched(*given: Any, **rest: Any) -> Any:
        request, preparation = prepare(*given, **rest)
        request.encoded = Pixels()  # type: ignore[assignment]
        requests.append(weakref.ref(request.encoded))
        return request, preparation

    bench.preparer.prepare = watched  # type: ignore[method-assign]
    gc.disable()  # pixels do not wait for the collector
    try:
        streams = [bench.engine.add([i], params(3)) for i in range(5)]
        assert all(stream.result(20).finished for stream in streams)
        bench.runner.steps.clear()
        assert bench.engine.drain(20)
        assert [request() for request in requests] == [None] * 5
        engine = weakref.ref(bench.engine)
        bench.engine.close()
        bench.engine = None  # type: ignore[assignment]
        gc.collect()
        assert engine() is None
    finally:
        gc.enable()
        bench.engine = AsyncEngine(bench.core, bench.preparer, in_turn=True)  # type: ignore[arg-type]
    assert all(stream.output.finished for stream in streams)


def test_the_error_of_a_refused_request_keeps_none_of_it(bench: Bench) -> None:
    held: list[weakref.ref[Any]] = []

    def refuse(*given: Any, **rest: Any) -> Any:
        pixels = Pixels()
        held.append(weakref.ref(pixels))
        try:
            raise ValueError("damaged")
        except ValueError as cause:
            raise SightlineError("the picture is damaged") from cause

    bench.preparer.prepare = refuse  # type: ignore[method-assign]
    gc.disable()  # pixels do not wait for the collector
    try:
        stream = bench.engine.add([1], params(3))
        with pytest.raises(SightlineError, match="damaged") as error:
            stream.result(20)
        assert isinstance(error.value.__cause__, ValueError)
        assert bench.engine.drain(20)
        assert [one() for one in held] == [None]
    finally:
        gc.enable()


class Pixels:
    """Stands for what a request holds most of."""


def test_an_output_can_be_read_at_any_moment(bench: Bench) -> None:
    streams: dict[str, Any] = {}
    seen: list[bool] = []
    forget = bench.core.forget

    def watched(request_id: str) -> None:
        forget(request_id)
        seen.append(streams[request_id].output.finished)

    bench.core.forget = watched  # type: ignore[method-assign]
    bench.hold()
    for name in "abc":
        streams[name] = bench.engine.add([ord(name)], params(3), request_id=name)
    bench.gate.set()
    assert all(stream.result(20).finished for stream in streams.values())
    assert bench.engine.drain(20)
    bench.engine.close()
    assert seen == [True] * 3


def test_an_id_may_be_given_again_the_moment_it_is_free(bench: Bench) -> None:
    """The answers to a request may end in one step, and its reader ask again after the first of them is told."""
    again: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask(stream: Any) -> None:
        again.put(bench.engine.add([2], params(4), request_id="a"))

    bench.engine.add([1], params(3, n=3), request_id="a", on_end=ask).result(20)
    second = again.get(timeout=20)
    assert [answer.token_ids for answer in second.result(20).outputs] == [answer_to([2], 4)]


def test_an_id_of_the_caller_is_not_given_again(bench: Bench) -> None:
    bench.hold()
    named = bench.engine.add([1], params(), request_id="1")
    others = [bench.engine.add([2], params()) for _ in range(3)]
    assert len({stream.id for stream in [named, *others]}) == 4
    bench.gate.set()
    assert all(stream.result(20).finished for stream in [named, *others])


def test_the_collector_may_end_an_engine_that_this_thread_uses(bench: Bench) -> None:
    bench.hold()
    stream = bench.engine.add([1], params(100))
    with bench.engine._lock:
        stopper = threading.Thread(target=bench.engine.stop)
        stopper.start()
        stopper.join(5)
        assert not stopper.is_alive()
    bench.gate.set()
    assert stream.result(20).outputs[0].finish_reason == "abort"
    with pytest.raises(EngineStopped) as refused:
        bench.engine.add([1], params())
    assert not isinstance(refused.value, EngineDied)


def test_threads_that_take_nothing_more_end_the_engine_in_order() -> None:
    """At its exit Python shuts all pools before anything else may close the engine."""
    bench = Bench(in_turn=False)
    bench.hold()
    first = bench.engine.add([1], params())
    first.wait_opened(20)
    assert bench.engine._line._pool is not None
    bench.engine._line._pool.shutdown()
    second = bench.engine.add([2], params())
    bench.gate.set()
    assert second.result(20).outputs[0].finish_reason == "abort"
    assert first.result(20).outputs[0].finish_reason in ("abort", "length")
    assert not bench.engine.alive
    bench.engine.close()


def test_an_engine_that_slept_is_not_stuck(bench: Bench) -> None:
    bench.engine.add([1], params()).result(20)
    bench.engine.drain(20)
    bench.engine._draining = False
    bench.hold()
    bench.engine.heartbeat -= 3600
    stream = bench.engine.add([1], params())
    assert bench.engine.stalled() < 10
    bench.gate.set()
    stream.result(20)


def test_an_engine_that_waits_for_its_threads_is_not_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_engine, "_BEAT", 0.05)
    bench = Bench(in_turn=False)
    bench.preparer.seconds = 1.0
    stream = bench.engine.add([1], params())
    time.sleep(0.7)
    assert bench.engine.stalled() < 0.5
    stream.result(20)
    bench.engine.close()


def test_loops_that_are_closed_do_not_matter(bench: Bench) -> None:
    bench.hold()

    async def leave() -> None:
        stream = bench.engine.add([1], params())
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(anext(stream), 0.1)

    asyncio.run(leave())
    bench.gate.set()
    assert bench.engine.add([2], params()).result(20).finished
