"""Ulysses, guidance groups and both, with and without a plan, against one process."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from video.parallel.world import HEAD_DIM, HEADS, LAYERS, LAYOUTS, PLANS, TOKENS, generate, make_model

from sightline.video.parallel.layout import Layout, shares
from sightline.video.parallel.volume import of_attention

World = list[dict[str, Any]]
TOLERANCE = 1e-5


@cache
def alone(plan: str, operators: bool) -> torch.Tensor:
    return generate(make_model(operators=operators), PLANS[plan], Layout())


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_group_makes_what_one_process_makes(world: World, layout: str, plan: str) -> None:
    expected = alone(plan, False)
    assert not expected.isnan().any()
    if plan != "none":
        assert (expected - alone("none", False)).abs().max() > 1e-3  # the plan does something
    for rank in LAYOUTS[layout][0]:
        found = world[rank][f"{layout} {plan}"]
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_so_it_does_with_our_operators(world: World, layout: str) -> None:
    for plan in ("none", "range", "extrapolation"):
        for rank in LAYOUTS[layout][0]:
            found = world[rank][f"{layout} {plan} operators"]
            torch.testing.assert_close(found, alone(plan, True), atol=TOLERANCE, rtol=TOLERANCE)


def test_every_rank_holds_the_same_bits(world: World) -> None:
    compared = 0
    for layout, (members, _, _) in LAYOUTS.items():
        for key in (key for key in world[members[0]] if key.startswith(f"{layout} ")):
            first, *others = (world[rank][key] for rank in members)
            assert all(torch.equal(first, other) for other in others), key
            compared += 1
    assert compared == 8 * len(LAYOUTS)


def test_branches_are_spread_outermost(world: World) -> None:
    both = ("cond", "uncond")
    assert [found["branches"].get("CFG2xU2") for found in world] == [("cond",)] * 2 + [("uncond",)] * 2
    assert [found["branches"].get("CFG2") for found in world] == [None, None, ("cond",), ("uncond",)]
    assert world[0]["branches"]["U2"] == world[0]["branches"]["U4"] == both


def test_undone_the_model_is_as_before(world: World) -> None:
    for found in world:
        assert found["sent undone"] == []
        # Not to the bit: this process may have more threads than a rank.
        torch.testing.assert_close(found["undone"], alone("none", True), atol=TOLERANCE, rtol=TOLERANCE)


def in_blocks(calls: list[tuple[str, int]]) -> list[int]:
    """The elements of every collective of a forward but the last, which gathers the result."""
    *inside, last = calls
    assert "allgather" in last[0]
    assert all("alltoall" in name for name, _ in inside)
    return [elements for _, elements in inside]


def test_a_layer_sends_four_times_its_share_and_nothing_else(world: World) -> None:
    tokens, width, ranks = 64, 4 * HEAD_DIM, 4
    for rank, found in enumerate(world):
        sizes = in_blocks(found["sent even"])
        assert sizes == [3 * tokens * width // ranks, tokens * width // ranks] * LAYERS
        volume = of_attention(tokens, 4, HEAD_DIM, ranks, rank)
        assert sum(sizes) == LAYERS * volume.elements == LAYERS * 4 * tokens * width // ranks
        assert volume.leaving == volume.elements * (ranks - 1) // ranks


def test_uneven_shares_are_counted_as_they_are_sent(world: World) -> None:
    total = 0
    for rank in range(3):
        sizes = in_blocks(world[rank]["sent uneven"])
        volume = of_attention(TOKENS, HEADS, HEAD_DIM, 3, rank)
        assert sum(sizes) == LAYERS * volume.elements
        assert 0 < volume.leaving < volume.elements
        total += volume.elements
    assert total == 4 * TOKENS * HEADS * HEAD_DIM


def test_guidance_groups_send_one_velocity_a_step(world: World) -> None:
    for found in world:
        ((name, elements),) = found["sent guidance"]
        assert "allgather" in name
        assert elements == 4 * 5 * 10 * 10


def test_exchanged_heads_see_all_tokens_in_order_and_come_home(world: World) -> None:
    for rank in range(3):
        assert world[rank]["exchange"] == {
            "torch.float32": True,
            "torch.bfloat16": True,
            "torch.float16": True,
        }


def test_a_time_for_each_token_is_cut_too(world: World) -> None:
    for found in world:
        parts, whole = found["times of tokens"]
        torch.testing.assert_close(parts, whole, atol=TOLERANCE, rtol=TOLERANCE)


def test_blocks_compile_whole_with_the_exchanges_in_them(world: World) -> None:
    for found in world[:2]:
        fast, plain = found["compiled"]
        torch.testing.assert_close(fast, plain, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("heads", ("UsageError: 3 heads cannot be spread over 4 ranks", "--ulysses-size 3 or less", "1, 3")),
        (
            "tokens",
            ("UsageError: a video of 2 tokens cannot be cut over 4 ranks", "--ulysses-size 2 or less"),
        ),
        ("gradient", ("SightlineError: Ulysses generates and does not train", "torch.no_grad()")),
        ("twice", ("SightlineError: the transformer is cut already",)),
        ("same", ("nothing",)),
        (
            "different",
            (
                "SightlineError: the ranks are not asked for the same video: seed (1 on ranks 0 and 1 and 3, 3 on "
                "rank 2); weights (aaaa",
                "start every rank with the same model, options and plan",
            ),
        ),
    ],
)
def test_what_cannot_be_is_refused_on_every_rank_alike(
    world: World, case: str, parts: tuple[str, ...]
) -> None:
    for found in world:
        assert all(part in found["refusals"][case] for part in parts), found["refusals"][case]


def test_what_the_first_of_a_group_knows_all_of_it_are_told(world: World) -> None:
    for found in world:
        assert found["said"] == {name: LAYOUTS[name][0][0] for name in found["said"]}
    assert world[3]["said"]["CFG2"] == 2


def test_shares_differ_by_one_and_the_first_hold_more() -> None:
    assert shares(10, 4) == (3, 3, 2, 2)
    assert shares(32760, 4) == (8190,) * 4
    assert shares(12, 8) == (2, 2, 2, 2, 1, 1, 1, 1)
