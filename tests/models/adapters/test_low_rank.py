"""Changes of joined maps, and of some rows only."""

from __future__ import annotations

import torch

from sightline.models.adapters.low_rank import Group, Layers, Pair, add, side_by_side, within


def pair(inputs: int, rank: int, outputs: int, seed: int) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    return Pair(
        torch.randn(inputs, rank, generator=generator), torch.randn(rank, outputs, generator=generator)
    )


def test_changes_side_by_side_are_each_its_own() -> None:
    first, last = pair(6, 2, 5, 1), pair(6, 3, 4, 2)
    joined = side_by_side([(first, 5), (None, 7), (last, 4)])
    assert joined is not None
    rows = torch.randn(3, 6)
    expected = torch.cat([rows @ first.down @ first.up, torch.zeros(3, 7), rows @ last.down @ last.up], dim=1)
    torch.testing.assert_close(rows @ joined.down @ joined.up, expected)
    assert side_by_side([(None, 5), (None, 4)]) is None


def test_each_group_changes_its_rows_only() -> None:
    one, two = pair(6, 2, 5, 1), pair(6, 4, 5, 2)
    rows, base = torch.randn(9, 6), torch.randn(9, 5)
    groups = [
        Group(slice(2, 5), Layers([{}, {"o": one}])),
        Group(slice(5, 8), Layers([{"o": one}, {"o": two}])),
    ]
    found = base.clone()
    add(groups, 1, "o", rows, found)
    expected = base.clone()
    expected[2:5] += rows[2:5] @ one.down @ one.up
    expected[5:8] += rows[5:8] @ two.down @ two.up
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[:2], base[:2])
    add(groups, 0, "other", rows, found)
    torch.testing.assert_close(found, expected)


def test_groups_within_a_part_are_counted_from_its_start() -> None:
    layers = Layers()
    groups = [Group(slice(2, 5), layers), Group(slice(5, 9), layers)]
    cut = [[group.rows for group in within(groups, start, start + 4)] for start in (0, 4, 8)]
    assert cut == [[slice(2, 4)], [slice(0, 1), slice(1, 4)], [slice(0, 1)]]
    assert within(groups, 0, 2) == []
