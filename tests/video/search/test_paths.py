"""Shortest paths over steps against every schedule there is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.video.search.paths import History, Path, best_paths


def costs_of(
    table: dict[tuple[History, int], float], chosen: Sequence[int], steps: int, memory: int
) -> list[float]:
    """What each skipped step costs, in the order of the steps."""
    found = []
    for step in range(steps):
        if step not in chosen:
            before = tuple(sorted((each for each in chosen if each < step), reverse=True))[:memory]
            found.append(table[before, step])
    return found


def schedules(steps: int, longest: int, allowed: Sequence[int]) -> list[tuple[int, ...]]:
    found = []
    for count in range(steps):
        for others in itertools.combinations(allowed, count):
            chosen = (0, *others)
            gaps = [later - one - 1 for one, later in itertools.pairwise((*chosen, steps))]
            if max(gaps) <= longest:
                found.append(chosen)
    return found


@st.composite
def problems(draw: st.DrawFn) -> tuple[int, int, int, list[int], dict[tuple[History, int], float]]:
    steps, memory, longest = draw(st.integers(1, 7)), draw(st.integers(1, 3)), draw(st.integers(1, 6))
    allowed = [step for step in range(1, steps) if draw(st.integers(0, 4))]
    errors = st.one_of(st.floats(0, 10, width=16), st.just(math.inf))
    table = {
        (tuple(sorted(before, reverse=True)), step): draw(errors)
        for step in range(1, steps)
        for size in range(1, memory + 1)
        for before in itertools.combinations(range(step), size)
    }
    return steps, memory, longest, allowed, table


@pytest.mark.parametrize("form", ["sum", "worst"])
@given(problem=problems())
@settings(deadline=None, max_examples=60)
def test_every_number_of_steps_gets_the_best_schedule(form: str, problem: tuple) -> None:  # type: ignore[type-arg]
    steps, memory, longest, allowed, table = problem
    best: dict[int, tuple[float, float]] = {}
    for chosen in schedules(steps, longest, allowed):
        each = costs_of(table, chosen, steps, memory)
        total, worst = math.fsum(each), max(each, default=0.0)
        value = (total, worst) if form == "sum" else (worst, total)
        if total < math.inf and value < best.get(len(chosen), (math.inf, math.inf)):
            best[len(chosen)] = value
    found = best_paths(
        steps,
        lambda history, step: table[history, step],
        memory=memory,
        longest=longest,
        form=form,
        allowed=allowed,
    )
    assert found.keys() == best.keys()
    for count, path in found.items():
        assert len(path.steps) == count
        each = costs_of(table, path.steps, steps, memory)
        assert path.total == pytest.approx(math.fsum(each))
        assert path.worst == max(each, default=0.0)
        assert (path.total if form == "sum" else path.worst) == pytest.approx(best[count][0])
        if form == "worst":
            assert path.total == pytest.approx(best[count][1])


def test_only_the_asked_numbers_are_answered() -> None:
    found = best_paths(6, lambda history, step: float(step - history[0]), counts=[2, 3, 9])
    assert found == {2: Path((0, 3), 6.0, 2.0), 3: Path((0, 2, 4), 3.0, 1.0)}


def test_a_full_problem_takes_no_long() -> None:
    import time

    begun = time.process_time()
    found = best_paths(50, lambda history, step: (step - history[-1]) ** 1.5, memory=3, counts=range(10, 40))
    assert len(found) == 30
    assert time.process_time() - begun < 20
