from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sightline.engine.media.encoder_cache import EncoderCache

WIDTH, LEVELS = 3, 2
ROW = WIDTH * LEVELS * 4


def features(rows: int, value: float = 1.0) -> list[torch.Tensor]:
    return [torch.full((rows, WIDTH), value + level) for level in range(LEVELS)]


def fill(cache: EncoderCache, key: bytes, rows: int) -> None:
    assert cache.reserve(key, rows)
    cache.put(key, features(rows, float(key[0])))


def test_features_come_back_and_the_least_recently_used_goes_first() -> None:
    cache = EncoderCache(10 * ROW, ROW)
    for key, rows in ((b"a", 4), (b"b", 4)):
        fill(cache, key, rows)
        cache.unpin(key)
    assert [part[0, 0].item() for part in cache.get(b"a")] == [ord("a"), ord("a") + 1]
    fill(cache, b"c", 4)
    assert (cache.has(b"a"), cache.has(b"b"), cache.has(b"c")) == (True, False, True)
    assert (cache.misses, cache.evictions, cache.bytes) == (3, 1, 8 * ROW)
    cache.check_integrity()


def test_room_is_refused_while_what_is_there_is_pinned() -> None:
    cache = EncoderCache(10 * ROW, ROW)
    fill(cache, b"a", 6)
    assert not cache.reserve(b"b", 5)
    cache.check_integrity()
    cache.unpin(b"a")
    assert cache.reserve(b"b", 5)
    assert not cache.has(b"a")


def test_room_without_features_is_not_a_hit_and_is_given_back() -> None:
    cache = EncoderCache(10 * ROW, ROW)
    assert cache.reserve(b"a", 6)
    assert not cache.has(b"a")
    with pytest.raises(KeyError):
        cache.get(b"a")
    cache.unpin(b"a")  # the step that was to compute them failed
    assert cache.bytes == 0
    cache.check_integrity()


def test_pins_are_counted() -> None:
    cache = EncoderCache(10 * ROW, ROW)
    fill(cache, b"a", 6)
    cache.pin(b"a")
    assert cache.reserve(b"a", 6)
    cache.unpin(b"a")
    cache.unpin(b"a")
    assert not cache.reserve(b"b", 6)
    cache.unpin(b"a")
    assert cache.reserve(b"b", 6)
    assert (cache.hits, cache.misses) == (2, 2)
    with pytest.raises(KeyError):
        cache.unpin(b"a")


def test_a_medium_beyond_the_capacity_is_served_alone_and_dropped() -> None:
    cache = EncoderCache(4 * ROW, ROW)
    fill(cache, b"a", 2)
    assert not cache.reserve(b"big", 9)
    cache.unpin(b"a")
    fill(cache, b"big", 9)
    assert cache.has(b"big")
    assert not cache.has(b"a")
    assert not cache.reserve(b"b", 1)
    cache.check_integrity()
    cache.unpin(b"big")
    assert (cache.has(b"big"), cache.bytes) == (False, 0)


def test_a_slice_does_not_keep_its_batch() -> None:
    cache = EncoderCache(10 * ROW, ROW)
    cache.reserve(b"a", 2)
    batch = features(100)
    cache.put(b"a", [part[10:12] for part in batch])
    assert all(part.untyped_storage().nbytes() == 2 * WIDTH * 4 for part in cache.get(b"a"))


@pytest.mark.parametrize(
    "given_features", [features(3), features(2)[:1], [part.double() for part in features(2)]]
)
def test_features_of_another_size_are_refused(given_features: Any) -> None:
    cache = EncoderCache(10 * ROW, ROW)
    cache.reserve(b"a", 2)
    with pytest.raises(ValueError, match="2 vision tokens"):
        cache.put(b"a", given_features)


def test_features_without_room_are_refused() -> None:
    with pytest.raises(ValueError, match="no room"):
        EncoderCache(10 * ROW, ROW).put(b"a", features(1))


class Schedules(RuleBasedStateMachine):
    """Random use, beside a model that only counts pins."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = EncoderCache(12 * ROW, ROW)
        self.pins: dict[int, int] = {}
        self.there: set[int] = set()

    @rule(medium=st.integers(1, 15))
    def reserve(self, medium: int) -> None:
        held = sum(other for other, pins in self.pins.items() if pins)
        fits = bool(self.pins.get(medium)) or not held or held + medium <= 12
        had = self.cache.has(bytes([medium]))
        assert self.cache.reserve(bytes([medium]), medium) == (fits or had)
        if fits or had:
            self.pins[medium] = self.pins.get(medium, 0) + 1
            self.there = self.there if had else self.there - {medium}

    @precondition(lambda self: any(self.pins.values()))
    @rule(data=st.data())
    def put(self, data: st.DataObject) -> None:
        medium = data.draw(st.sampled_from(sorted(key for key, pins in self.pins.items() if pins)))
        self.cache.put(bytes([medium]), features(medium, float(medium)))
        self.there.add(medium)

    @precondition(lambda self: any(self.pins.values()))
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        medium = data.draw(st.sampled_from(sorted(key for key, pins in self.pins.items() if pins)))
        self.cache.unpin(bytes([medium]))
        self.pins[medium] -= 1

    @invariant()
    def holds(self) -> None:
        self.cache.check_integrity()
        for medium, pins in self.pins.items():
            if pins:  # whatever is pinned and was put is still there, with its own numbers
                assert self.cache.has(bytes([medium])) == (medium in self.there)
            if self.cache.has(bytes([medium])):
                assert self.cache.get(bytes([medium]))[0].eq(medium).all()


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), max_size=40))
@settings(deadline=None)
def test_one_after_the_other_it_never_holds_more_than_its_capacity(uses: list[tuple[int, int]]) -> None:
    cache = EncoderCache(8 * ROW, ROW)
    for medium, _ in uses:
        key, rows = bytes([medium]), medium % 5 + 1
        if cache.has(key):
            cache.pin(key)
        else:
            fill(cache, key, rows)
        cache.unpin(key)
        assert cache.bytes <= cache.capacity
        assert cache.has(key)
        cache.check_integrity()
