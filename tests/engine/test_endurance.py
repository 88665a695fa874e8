"""Five hundred requests, many of them given up at some moment: nothing is lost, left waiting or kept."""

from __future__ import annotations

import gc
import random
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from exactness import QUESTIONS, TOKENS, Bench, ask, bench, photo

from sightline.data.conversation import Conversation, Text
from sightline.engine.async_engine import AsyncEngine
from sightline.engine.outputs import RequestOutput
from sightline.engine.sampling.params import SamplingParams
from sightline.engine.scheduling.request import Request
from sightline.engine.stats import Stats
from sightline.engine.stream import Stream

REQUESTS = 500
_WARM = 150  # until every cache and every pool of the allocator has its size
# A fresh picture's patches take 0.3 MB: were those of half of the later requests kept, it would be 20 MB. What
# allocator and interpreter grow by themselves is a few MB.
_MOST_GROWTH = 16 * 2**20


class Crowd:
    """Gives requests to an engine from one thread, and reads and aborts them from others."""

    def __init__(self, bench: Bench, engine: AsyncEngine) -> None:
        self.bench = bench
        self.engine = engine
        self.random = random.Random(5)
        self.ended = 0
        self.reasons: Counter[str] = Counter()
        self._room = threading.Semaphore(12)
        self._lock = threading.Lock()

    def send(self, count: int) -> None:
        threads = []
        for number in range(count):
            self._room.acquire()
            name = None if self.random.random() < 0.3 else self.random.choice(list(QUESTIONS))
            prompt = self._fresh(number) if name is None else QUESTIONS[name]
            params = SamplingParams(
                temperature=0, max_tokens=self.random.randint(1, TOKENS), n=self.random.choice([1, 1, 2])
            )
            stream = self.engine.add(prompt, params, deltas=self.random.random() < 0.5)
            # Seconds until it is aborted; most of the later ones come too late.
            patience = self.random.choice([None, None, 0.0, 0.02, 0.2])
            threads.append(threading.Thread(target=self._follow, args=(stream, name, params, patience)))
            threads[-1].start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a request never ended"

    def _fresh(self, number: int) -> Conversation:
        return ask(photo(112, 112, self.random.getrandbits(32)), Text(f"is it red? {number}"))

    def _follow(
        self, stream: Stream, name: str | None, params: SamplingParams, patience: float | None
    ) -> None:
        try:
            if patience is not None:
                time.sleep(patience)
                stream.abort()
            elif stream.wants_deltas:
                told = [token for delta in stream if delta.index == 0 for token in delta.token_ids]
                assert told == list(stream.result(60).outputs[0].token_ids)
            self._check(stream.result(60), name, params)
        finally:
            self._room.release()

    def _check(self, output: RequestOutput, name: str | None, params: SamplingParams) -> None:
        assert output.error is None
        for answer in output.outputs:
            found = list(answer.token_ids)
            length = len(found) if answer.finish_reason == "abort" else params.max_tokens
            if name is not None:
                assert found == self.bench.plain(name).tokens[:length]
        with self._lock:
            self.ended += 1
            self.reasons.update(str(answer.finish_reason) for answer in output.outputs)


@pytest.mark.parametrize("in_turn", [True, False], ids=["in-turn", "beside"])
def test_requests_come_and_go_and_leave_nothing(tiny_folder: Path, in_turn: bool) -> None:
    one = bench(tiny_folder)
    for name in QUESTIONS:
        one.plain(name)
    parts = one.parts(
        block_size=4,
        kv_cache_memory_bytes=one.bytes_of(60, 4),
        encoder_cache_bytes=20_000,
        image_cache_bytes=2**21,
        max_num_batched_tokens=48,
        num_speculative_tokens=3 if in_turn else 0,
    )
    before = set(threading.enumerate())
    others = _requests()  # of engines that other tests keep
    engine = AsyncEngine(parts.core, parts.preparer, in_turn=in_turn)
    crowd = Crowd(one, engine)
    crowd.send(_WARM)
    start = _resident()
    crowd.send(REQUESTS - _WARM)
    assert engine.drain(20)
    assert _resident() - start < _MOST_GROWTH
    assert all(any(found is other for other in others) for found in _requests())
    assert crowd.ended == REQUESTS
    _check_counts(engine.stats(), crowd.reasons)
    engine.close()
    parts.core.check_integrity()
    until = time.monotonic() + 10  # a pool's threads end by themselves
    while set(threading.enumerate()) - before and time.monotonic() < until:
        time.sleep(0.05)
    assert not set(threading.enumerate()) - before


def _check_counts(stats: Stats, reasons: Counter[str]) -> None:
    assert (stats.preparing, stats.waiting, stats.running, stats.blocks_used) == (0, 0, 0, 0)
    assert reasons == {reason: count for reason, count in stats.totals.finished.items() if count}
    assert min(reasons["abort"], reasons["length"]) > REQUESTS // 10
    assert min(stats.prefix_cache.hits, stats.encoder_cache.hits, stats.image_cache.hits) > 0
    assert stats.totals.preemptions > 0


def _requests() -> list[Request]:
    gc.collect()
    return [found for found in gc.get_objects() if type(found) is Request]


def _resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    return int(psutil.Process().memory_info().rss)
