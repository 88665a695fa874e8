"""Blocks are shared only where everything before them is the same, and are never lost."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import PLACEHOLDER, make_request

from sightline.engine.scheduling.blocks import BlockPool
from sightline.engine.scheduling.free_runs import FreeRuns
from sightline.engine.scheduling.request import Medium, Span
from sightline.engine.scheduling.sequence import Sequence

# Python's hash of an int is its remainder by this.
_HASH_MODULUS = (1 << 61) - 1


def _sequence(prompt: list[int], **options) -> Sequence:
    return make_request("a", prompt, **options).sequences[0]


def _compute(pool: BlockPool, sequence: Sequence, tokens: int | None = None) -> None:
    """As a step does it, for all tokens or up to `tokens`."""
    count = len(sequence.tokens) if tokens is None else tokens
    pool.grow(sequence, count)
    sequence.computed = count
    pool.publish(sequence)


def _leave(pool: BlockPool, prompt: list[int], **options) -> list[int]:
    """Compute a prompt and go; returns the blocks it had."""
    sequence = _sequence(prompt, **options)
    pool.match(sequence)
    _compute(pool, sequence)
    blocks = sequence.blocks
    pool.free(sequence)
    return blocks


def _found(pool: BlockPool, prompt: list[int], **options) -> int:
    sequence = _sequence(prompt, **options)
    found = pool.match(sequence)
    pool.free(sequence)
    return found


def _shown(key: bytes, *, before: int = 2, rows: int = 4, offset: int = 0) -> dict:
    return {"media": [Medium("image", key, 9)], "spans": [Span(0, before, rows, offset)]}


def test_full_blocks_are_found_until_the_first_difference() -> None:
    pool = BlockPool(20, 4)
    prompt = list(range(14))
    _leave(pool, prompt)
    assert _found(pool, prompt) == 12
    assert _found(pool, [*prompt[:8], 99, *prompt[9:]]) == 8
    assert _found(pool, prompt[:7]) == 4
    assert _found(pool, prompt[4:]) == 0


def test_the_last_token_is_never_found() -> None:
    pool = BlockPool(20, 4)
    _leave(pool, list(range(8)))
    assert _found(pool, list(range(8))) == 4
    assert _found(pool, list(range(9))) == 8


def test_a_found_block_is_shared_and_stays_while_one_holds_it() -> None:
    pool = BlockPool(20, 4)
    first, second = _sequence(list(range(9))), _sequence(list(range(9)))
    pool.match(first)
    _compute(pool, first)
    assert pool.match(second) == 8
    _compute(pool, second)
    assert first.blocks[:2] == second.blocks[:2]
    assert first.blocks[2] != second.blocks[2]
    pool.free(first)
    pool.check_integrity([second])
    assert pool.used_blocks == 3


def test_a_block_is_found_only_when_all_its_tokens_are_computed() -> None:
    pool = BlockPool(20, 4)
    sequence = _sequence(list(range(12)))
    _compute(pool, sequence, 7)
    assert _found(pool, list(range(12))) == 4


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (_shown(b"a"), 8),
        (_shown(b"b"), 0),
        (_shown(b"a", offset=2), 0),
        (_shown(b"a", before=1), 0),
        ({}, 0),
        ({**_shown(b"a"), "adapter": "style"}, 0),
    ],
)
def test_media_and_adapter_are_part_of_what_is_found(other: dict, found: int) -> None:
    pool = BlockPool(20, 4)
    # All placeholders, so that tokens alone say nothing.
    prompt = [PLACEHOLDER] * 10
    _leave(pool, prompt, **_shown(b"a"))
    assert _found(pool, prompt, **other) == found


def test_an_image_behind_a_block_does_not_matter_to_it() -> None:
    pool = BlockPool(20, 4)
    _leave(pool, [PLACEHOLDER] * 12, **_shown(b"a", before=4))
    assert _found(pool, [PLACEHOLDER] * 12, **_shown(b"b", before=4)) == 4


def test_beginnings_of_equal_hash_are_not_mixed_up() -> None:
    prompt = [1, 2, 3, 4, 5]
    twin = [token + _HASH_MODULUS for token in prompt]
    assert hash(tuple(prompt)) == hash(tuple(twin))
    pool = BlockPool(20, 4)
    _leave(pool, prompt)
    assert _found(pool, twin) == 0
    assert _leave(pool, twin) != []
    assert _found(pool, prompt) == _found(pool, twin) == 4
    pool.check_integrity([])


def test_the_same_tokens_behind_another_beginning_are_not_found() -> None:
    pool = BlockPool(20, 4)
    same = [7, 7, 7, 7]
    _leave(pool, [1, 1, 1, 1, *same, 0])
    assert _found(pool, [2, 2, 2, 2, *same, 0]) == 0
    _leave(pool, [2, 2, 2, 2, 0])
    assert _found(pool, [2, 2, 2, 2, *same, 0]) == 4


def test_two_that_compute_the_same_at_once_leave_one_to_be_found() -> None:
    pool = BlockPool(20, 4)
    twins = [_sequence(list(range(9))), _sequence(list(range(9)))]
    for twin in twins:
        assert pool.match(twin) == 0
        pool.grow(twin, 9)
    for twin in twins:
        twin.computed = 9
        pool.publish(twin)
        pool.check_integrity(twins)
    third = _sequence(list(range(9)))
    assert pool.match(third) == 8
    assert third.blocks == twins[0].blocks[:2]
    for sequence in (*twins, third):
        pool.free(sequence)
    pool.check_integrity([])


def test_the_least_recently_used_is_evicted_first_and_of_it_the_end() -> None:
    pool = BlockPool(6, 4)
    first, second = list(range(10, 19)), list(range(20, 29))
    _leave(pool, first)
    _leave(pool, second)
    # Looking at the first makes it the more recent one.
    assert _found(pool, first) == 8
    _leave(pool, [30] * 12)
    assert pool.evictions == 1
    assert (_found(pool, first), _found(pool, second)) == (8, 4)
    other = _sequence([40] * 16)
    _compute(pool, other)
    assert _found(pool, first) <= 4
    pool.check_integrity([other])


def test_evicted_blocks_are_found_no_more_and_used_ones_are_never_evicted() -> None:
    pool = BlockPool(4, 4)
    held = _sequence(list(range(8)))
    _compute(pool, held)
    _leave(pool, [1] * 8)
    other = _sequence([2] * 8)
    _compute(pool, other)
    assert not set(other.blocks) & set(held.blocks)
    assert _found(pool, [1] * 9) == 0
    assert pool.missing(other, 9) > pool.free_blocks
    with pytest.raises(ValueError, match="1 blocks are wanted but only 0 are free"):
        pool.grow(other, 9)
    pool.check_integrity([held, other])


def test_a_shared_block_is_free_when_its_last_holder_leaves() -> None:
    pool = BlockPool(8, 4)
    first, second = _sequence([1] * 11), _sequence([1] * 10)
    _compute(pool, first)
    pool.match(second)
    _compute(pool, second)
    assert len(set(first.blocks) & set(second.blocks)) == 2
    assert [pool.held_only_by(some) for some in ([], [first], [second], [first, second])] == [0, 1, 1, 4]


def test_room_counts_free_and_evictable_blocks() -> None:
    pool = BlockPool(5, 4)
    _leave(pool, [1] * 8)
    sequence = _sequence([2] * 30)
    assert pool.room(sequence) == 20
    _compute(pool, sequence, 6)
    assert pool.room(sequence) == 14
    assert (pool.free_blocks, pool.used_blocks) == (3, 2)


def test_sequences_that_grow_side_by_side_stay_in_runs() -> None:
    """Attention on a CPU reads a run of neighbours without a copy."""
    pool = BlockPool(8 * 22, 16)
    sequences = [_sequence([number] * 276, limit=64) for number in range(8)]
    for sequence in sequences:
        pool.grow(sequence, 276)
    for tokens in range(277, 276 + 64):
        for sequence in sequences:
            pool.grow(sequence, tokens)
    assert [_runs(sequence.blocks) for sequence in sequences] == [1] * 8


def test_a_new_sequence_leaves_its_neighbour_room_to_grow() -> None:
    pool = BlockPool(1000, 16)
    sequences = [_sequence([number] * 160, limit=100_000) for number in range(8)]
    for tokens in range(160, 600):
        for sequence in sequences:
            pool.grow(sequence, tokens)
    assert [_runs(sequence.blocks) for sequence in sequences] == [1] * 8


def test_a_full_cache_gives_neighbours_too() -> None:
    pool = BlockPool(400, 16)
    for number in range(60):
        sequence = _sequence([number] * 276, limit=64)
        pool.match(sequence)
        for tokens in range(276, 340):
            _compute(pool, sequence, tokens) if tokens == 276 else pool.grow(sequence, tokens)
        assert _runs(sequence.blocks) <= 2
        pool.free(sequence)
    assert pool.evictions > 0


def _runs(table: list[int]) -> int:
    return 1 + sum(behind != before + 1 for before, behind in itertools.pairwise(table))


class _Counted(dict):
    """Counts how often it is asked."""

    asked = 0

    def get(self, *args):
        _Counted.asked += 1
        return super().get(*args)

    def setdefault(self, *args):
        _Counted.asked += 1
        return super().setdefault(*args)


def test_the_cost_of_a_token_does_not_grow_with_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    for blocks in (100, 100_000):
        pool = BlockPool(blocks, 16)
        pool._found = _Counted()
        sequence = _sequence([0] * 161, limit=320)
        pool.match(sequence)
        _compute(pool, sequence)
        _Counted.asked = 0
        for _ in range(320):
            sequence.tokens.append(1)
            _compute(pool, sequence)
        asked.append(_Counted.asked)
        assert len(pool._free._widest) < 50
    assert asked == [20, 20]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["begin", "grow", "free"]), st.integers(0, 9), st.integers(1, 12)),
        max_size=60,
    )
)
def test_free_runs_hold_exactly_the_blocks_nobody_took(calls: list[tuple[str, int, int]]) -> None:
    free = FreeRuns(50)
    tables: list[list[int]] = []
    for call, which, count in calls:
        table = tables[which % len(tables)] if tables else []
        if call == "begin" and free.count:
            tables.append(free.anywhere(count))
            assert 0 < len(tables[-1]) <= count
            free.hope(tables[-1][-1], which)
        elif call == "grow" and table:
            free.give_up(table[-1])
            table += free.behind(table[-1], count)
            free.hope(table[-1], which)
        elif call == "free" and table:
            for block in reversed(table):
                free.add(block)
            tables.remove(table)
        held = [block for one in tables for block in one]
        left = [block for start, end in free.runs().items() for block in range(start, end)]
        assert sorted(held + left) == list(range(50))
        assert free.count == len(left)
        # Neighbouring runs are one.
        assert not set(free.runs()) & set(free.runs().values())
