"""Steps of few rows add the changes of all adapters at once, with the numbers of one after the other."""

from __future__ import annotations

import torch

from sightline.models.adapters.changes import Changes, Stacks
from sightline.models.adapters.low_rank import Group, Layers, Pair


def adapter(*names: str, rank: int, seed: int) -> Layers:
    generator = torch.Generator().manual_seed(seed)

    def pair() -> Pair:
        return Pair(torch.randn(6, rank, generator=generator), torch.randn(rank, 5, generator=generator))

    return Layers([{name: pair() for name in names}, {}])


def stacked(changes: Changes) -> bool:
    return changes._stack is not None


def test_adapters_that_meet_again_are_put_side_by_side() -> None:
    one, two, three = (
        adapter("o", "q", rank=2, seed=1),
        adapter("o", rank=3, seed=2),
        adapter("q", rank=1, seed=3),
    )
    stacks = Stacks()
    groups = [Group(slice(1, 3), one), Group(slice(3, 4), two), Group(slice(4, 9), three)]
    first = stacks.changes(groups, 9)
    moved = [Group(slice(0, 1), one), Group(slice(1, 4), two), Group(slice(6, 7), three)]
    again = stacks.changes(moved, 9)
    assert (stacked(first), stacked(again)) == (False, True)
    rows = torch.randn(9, 6)
    for name in ("o", "q", "other"):
        for layer in (0, 1):
            found, expected = torch.ones(9, 5), torch.ones(9, 5)
            again.add(layer, name, rows, found)
            Changes(moved).add(layer, name, rows, expected)
            torch.testing.assert_close(found, expected)
            # What no adapter has is the base's to the last bit.
            assert torch.equal(found[4:6], torch.ones(2, 5))
    part, expected = torch.ones(4, 5), torch.ones(9, 5)
    again.within(3, 7).add(0, "q", rows[3:7], part)
    Changes(moved).add(0, "q", rows, expected)
    torch.testing.assert_close(part, expected[3:7])


def test_others_and_longer_steps_are_not() -> None:
    one, two = adapter("o", rank=2, seed=1), adapter("o", rank=2, seed=2)
    stacks = Stacks()
    both = [Group(slice(0, 1), one), Group(slice(1, 2), two)]
    assert not stacked(stacks.changes(both, 2))
    assert not stacked(stacks.changes(both, 1000))
    assert stacked(stacks.changes(both, 2))
    assert not stacked(stacks.changes(both[:1], 2))
    other = [both[0], Group(slice(1, 2), adapter("o", rank=2, seed=3))]
    assert not stacked(stacks.changes(other, 2))
    assert not stacked(stacks.changes(both, 2))


def test_an_adapter_that_leaves_memory_takes_its_copy_with_it() -> None:
    one, two = adapter("o", rank=2, seed=1), adapter("o", rank=2, seed=2)
    stacks = Stacks()
    for _ in range(2):
        stacks.changes([Group(slice(0, 1), one), Group(slice(1, 2), two)], 2)
    assert stacks._stack is not None
    del one
    assert stacks._stack is None
