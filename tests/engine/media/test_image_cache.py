from __future__ import annotations

import random
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.engine.media.image_cache import ImageCache
from sightline.errors import SightlineError
from sightline.models.patches import Layout, Patched

ROW = 4 * 4


def patched(number: int, rows: int = 1) -> Patched:
    return Patched(Layout("image", (1, 2, 2), 1), torch.full((rows, 4), float(number)))


def never() -> Patched:
    raise AssertionError("it is kept already")


def test_what_is_kept_is_not_made_again() -> None:
    cache = ImageCache(2 * ROW)
    first = cache.get(b"a", lambda: patched(1))
    assert cache.get(b"a", never) is first
    assert (cache.hits, cache.misses, cache.bytes) == (1, 1, ROW)


def test_the_least_recently_used_goes_first() -> None:
    cache = ImageCache(2 * ROW)
    cache.get(b"a", lambda: patched(1))
    cache.get(b"b", lambda: patched(2))
    cache.get(b"a", never)
    cache.get(b"c", lambda: patched(3))
    assert cache.peek(b"b") is None
    assert cache.peek(b"a") is not None
    assert cache.evictions == 1


@pytest.mark.parametrize("capacity", [0, ROW])
def test_what_is_larger_than_the_cache_passes_through(capacity: int) -> None:
    cache = ImageCache(capacity)
    assert cache.get(b"a", lambda: patched(1, rows=2)).patches.shape == (2, 4)
    assert (cache.bytes, cache.peek(b"a")) == (0, None)
    cache.check_integrity()


def test_threads_that_miss_the_same_medium_make_it_once() -> None:
    cache, begun, go, made = ImageCache(9 * ROW), threading.Event(), threading.Event(), []

    def make() -> Patched:
        made.append(1)
        begun.set()
        assert go.wait(10)
        return patched(1)

    found: list[Patched] = []
    threads = [threading.Thread(target=lambda: found.append(cache.get(b"a", make))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    go.set()
    for thread in threads:
        thread.join(10)
    assert len(made) == 1
    assert len({id(value) for value in found}) == 1
    assert (cache.hits, cache.misses) == (3, 1)


def test_a_failure_is_not_kept_and_not_handed_to_others() -> None:
    cache, begun, go = ImageCache(9 * ROW), threading.Event(), threading.Event()

    def fail() -> Patched:
        begun.set()
        assert go.wait(10)
        raise SightlineError("mine alone")

    errors: list[str] = []

    def first() -> None:
        try:
            cache.get(b"a", fail)
        except SightlineError as error:
            errors.append(str(error))

    found: list[Patched] = []
    one = threading.Thread(target=first)
    two = threading.Thread(target=lambda: found.append(cache.get(b"a", lambda: patched(2))))
    one.start()
    assert begun.wait(10)
    two.start()
    go.set()
    one.join(10)
    two.join(10)
    assert errors == ["mine alone"]
    assert found[0].patches[0, 0] == 2
    cache.check_integrity()


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), max_size=60), st.integers(0, 10))
@settings(deadline=None)
def test_any_use_stays_within_bounds_and_gives_each_its_own(uses: list[tuple[int, int]], room: int) -> None:
    cache = ImageCache(room * ROW)
    for number, _ in uses:
        rows = number % 6
        value = cache.get(bytes([number]), lambda number=number, rows=rows: patched(number, rows))  # type: ignore[misc]
        assert value.patches.shape == (rows, 4)
        assert value.patches.eq(number).all()
        cache.check_integrity()
    assert cache.hits + cache.misses == len(uses)


def test_many_threads_leave_the_books_in_order() -> None:
    cache, wrong = ImageCache(5 * ROW), []

    def use(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(300):
            number = draw.randrange(12)
            if not cache.get(bytes([number]), lambda number=number: patched(number)).patches.eq(number).all():  # type: ignore[misc]
                wrong.append(number)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not wrong
    cache.check_integrity()
    assert cache.hits + cache.misses == 1200
