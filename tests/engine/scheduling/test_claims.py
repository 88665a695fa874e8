"""Features are claimed when a chunk needs them and given back when it goes."""

from __future__ import annotations

import pytest
from simulated import PLACEHOLDER, Store, make_request

from sightline.engine.scheduling.claims import Claims
from sightline.engine.scheduling.request import Medium, Request, Span
from sightline.engine.scheduling.step import Chunk


def _request(id: str, *keys: bytes, rows: int = 4) -> Request:
    """Media of 4 rows with a text token in front of each."""
    prompt = ([0] + [PLACEHOLDER] * rows) * len(keys)
    spans = [Span(index, 1 + index * (rows + 1), rows, 0) for index in range(len(keys))]
    return make_request(id, prompt, media=[Medium("image", key, rows) for key in keys], spans=spans)


def _chunk(request: Request) -> Chunk:
    return Chunk(request.sequences[0], 0, [])


def test_one_key_is_encoded_once_a_step() -> None:
    store = Store(100)
    claims = Claims(store, 100)
    first, second = _request("first", b"a", b"b", b"a"), _request("second", b"b")
    claims.begin()
    assert claims.reach(first.sequences[0], 15) == 15
    assert claims.reach(second.sequences[0], 5) == 5
    assert claims.encode([_chunk(first), _chunk(second)]) == [(first, 0), (first, 1)]
    assert store.pins == {b"a": 2, b"b": 2}


def test_what_a_preempted_chunk_would_have_encoded_is_encoded_for_another() -> None:
    store = Store(100)
    claims = Claims(store, 100)
    first, second, third = (_request(name, b"a") for name in ("first", "second", "third"))
    claims.begin()
    claims.reach(first.sequences[0], 5)
    claims.reach(second.sequences[0], 5)
    claims.release(first.sequences[0])
    assert claims.encode([_chunk(second)]) == [(second, 0)]
    # Nobody is left who wants it: it is not encoded, and room is made anew for the next one.
    claims.release(second.sequences[0])
    assert claims.encode([]) == []
    assert store.rows == {}
    assert claims.reach(third.sequences[0], 5) == 5
    assert claims.encode([_chunk(third)]) == [(third, 0)]


@pytest.mark.parametrize(("end", "reached"), [(1, 1), (2, 2), (5, 5), (6, 6), (7, 6), (10, 6)])
def test_a_chunk_ends_in_front_of_what_cannot_be_had(end: int, reached: int) -> None:
    claims = Claims(Store(100), 4)
    request = _request("a", b"a", b"b")
    claims.begin()
    assert claims.reach(request.sequences[0], end) == reached


def test_a_chunk_waits_in_front_of_a_full_store_and_holds_nothing_meanwhile() -> None:
    store = Store(4)
    claims = Claims(store, 100)
    first, second = _request("first", b"a", b"b").sequences[0], _request("second", b"c").sequences[0]
    claims.begin()
    assert claims.reach(first, 10) == 6
    first.computed = 6
    store.put(b"a")
    claims.passed(first)
    assert first.pinned == {}
    claims.begin()
    assert claims.reach(second, 5) == 5
    assert claims.reach(first, 10) == 6


def test_features_are_held_from_their_first_token_to_their_last() -> None:
    store = Store(100)
    claims = Claims(store, 100)
    sequence = _request("a", b"a").sequences[0]
    claims.begin()
    claims.reach(sequence, 3)
    store.put(b"a")
    for computed, pins in ((3, 1), (4, 1), (5, 0)):
        sequence.computed = computed
        claims.passed(sequence)
        assert store.pins[b"a"] == pins
