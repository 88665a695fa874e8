"""Directives: sources, weights and how long values are held, against a plain simulation of the loop."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.video.schedule import Directive, directives
from sightline.video.sites import Action, Site

OUTER, INNER = Site.parse("blocks[0:2]"), Site.parse("attention[1:2]")


def of(text: str, order: int = 1, times: list[float] | None = None) -> list[Directive]:
    row = [Action(letter) for letter in text]
    return directives({OUTER: row}, times or list(range(len(row))), order)[OUTER]


def test_a_reused_step_takes_the_last_computed_one() -> None:
    assert [each.sources for each in of("CCRRCR")] == [(), (), (1,), (1,), (), (4,)]


def test_values_are_held_from_the_step_that_computes_them_to_the_last_that_asks() -> None:
    assert [set(each.keep) for each in of("CCRRCRCC")] == [set(), {1}, {1}, set(), {4}, set(), set(), set()]
    assert [set(each.keep) for each in of("CCECE")] == [{0}, {0, 1}, {1}, {1, 3}, set()]


def test_weights_are_those_of_the_line_and_the_parabola() -> None:
    assert of("CCE")[2].weights == (-1.0,)
    assert of("CCRE")[3].weights == (-2.0,)
    assert of("CCCE", order=2)[3].weights == (1.0, -3.0)
    # Too few for a parabola: a line.
    assert of("CCE", order=2)[2].weights == (-1.0,)
    assert of("CCE", times=[1.0, 0.5, 0.25])[2].weights == (-0.5,)


@st.composite
def tables(draw: st.DrawFn) -> dict[Site, list[Action]]:
    """Two sites of which one is inside the other; what comes too early to be taken is computed."""
    steps = draw(st.integers(1, 9))
    row = st.lists(st.sampled_from("CRE").map(Action), min_size=steps, max_size=steps)
    table: dict[Site, list[Action]] = {OUTER: draw(row), INNER: draw(row)}
    for part, actions in table.items():
        ran = 0
        for step in range(steps):
            reached = part is OUTER or table[OUTER][step] is Action.COMPUTE
            if ran < {Action.COMPUTE: 0, Action.REUSE: 1, Action.EXTRAPOLATE: 2}[actions[step]]:
                actions[step] = Action.COMPUTE
            ran += reached and actions[step] is Action.COMPUTE
    return table


@given(tables(), st.integers(1, 3))
@settings(deadline=None)
def test_what_is_held_is_what_later_steps_ask_for_and_no_more(
    table: dict[Site, list[Action]], order: int
) -> None:
    found = directives(table, list(range(len(table[OUTER]))), order)
    for part, rows in found.items():
        held: list[int] = []
        for step, each in enumerate(rows):
            assert set(each.sources) <= set(held)
            if each.action is Action.COMPUTE:
                held.append(step)
            held = [one for one in held if one in each.keep]
            assert set(held) == set(each.keep)
            asked = {source for later in rows[step + 1 :] for source in later.sources if source <= step}
            assert set(held) == asked
        reached = [part is OUTER or table[OUTER][step] is Action.COMPUTE for step in range(len(rows))]
        assert [each.action is not None for each in rows] == reached
