"""What followed the same words before is proposed, found as a plain search finds it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sightline.engine.sampling.speculation import NgramIndex, propose


def searched(tokens: list[int], most: int, longest: int, shortest: int) -> list[int]:
    for length in range(longest, shortest - 1, -1):
        for end in range(len(tokens) - 1, length - 1, -1):
            if tokens[end - length : end] == tokens[len(tokens) - length :]:
                period = tokens[end:]
                return (period * most)[:most]
    return []


def test_the_longest_run_and_its_last_occurrence() -> None:
    tokens = [1, 2, 3, 4, 9, 2, 3, 5, 6, 1, 2, 3]
    assert propose(tokens, most=2, longest=3, shortest=1) == [4, 9]
    assert propose(tokens, most=2, longest=2, shortest=1) == [5, 6]
    assert propose([1, 2, 3], most=4, longest=3, shortest=1) == []
    assert propose([], most=4, longest=3, shortest=1) == []
    assert propose([1, 7, 8, 7, 8], most=5, longest=3, shortest=2) == [7, 8, 7, 8, 7]


@given(
    st.lists(st.integers(0, 3), max_size=40),
    st.integers(0, 40),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 3),
)
def test_a_growing_index_says_what_a_search_says(
    tokens: list[int], before: int, most: int, shortest: int, more: int
) -> None:
    index = NgramIndex(longest=shortest + more, shortest=shortest)
    index.propose(tokens[:before], most=most)
    expected = searched(tokens, most, shortest + more, shortest)
    assert index.propose(tokens, most=most) == expected
    assert propose(tokens, most=most, longest=shortest + more, shortest=shortest) == expected
