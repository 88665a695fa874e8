"""What the two guidance branches have in common in Wan's first block, and that sharing it changes no bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_wan import BRANCHES, denoise, latents, make_model, prompts, timestep

from sightline.video.attach import attached
from sightline.video.builders import exact, joined, masked
from sightline.video.cache import StepCache
from sightline.video.setting import Setting
from sightline.video.sites import OUTPUT, Site

STEPS = 6
SETTING = Setting(steps=STEPS)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def model(request: pytest.FixtureRequest) -> Any:
    return make_model().to(request.param)


def inputs(model: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    texts = {branch: text.to(model.dtype) for branch, text in prompts().items()}
    return latents().to(model.dtype), timestep(1, STEPS), texts


def test_all_of_the_first_block_before_the_text_is_equal_in_both_branches(model: Any) -> None:
    outputs: dict[str, dict[str, torch.Tensor]] = {branch: {} for branch in BRANCHES}
    x, time, texts = inputs(model)
    for branch in BRANCHES:
        hooks = [
            module.register_forward_hook(
                lambda module, given, output, name=name, found=outputs[branch]: found.update({name: output})
            )
            for name, module in model.named_modules()
        ]
        with torch.no_grad():
            model(x, time, texts[branch])
        for hook in hooks:
            hook.remove()
    first, second = (outputs[branch] for branch in BRANCHES)

    def equal(name: str) -> bool:
        return torch.equal(first[name], second[name])

    for name in ("patch_embedding", "condition_embedder.time_embedder", "condition_embedder.time_proj"):
        assert equal(name), name
    before = [
        "norm1",
        "attn1.to_q",
        "attn1.norm_k",
        "attn1.to_v",
        "attn1",
        "norm2",
        "attn2.to_q",
        "attn2.norm_q",
    ]
    assert all(equal(f"blocks.0.{name}") for name in before)
    # The text comes in here.
    behind = ["attn2.to_k", "attn2.to_v", "attn2", "norm3", "ffn"]
    assert not any(equal(f"blocks.0.{name}") for name in behind)
    assert not any(equal(f"blocks.1.{name}") for name in before)


def counted(model: Any, cache: StepCache, steps: int = STEPS) -> tuple[list[torch.Tensor], int]:
    """The latents, and how often the first block's self-attention ran."""
    calls = []
    handle = model.blocks[0].attn1.to_q.register_forward_hook(lambda *given: calls.append(1))
    with attached(model, cache):
        found = denoise(model, steps, cache.step)
    handle.remove()
    return found, len(calls)


@pytest.fixture(scope="module")
def small() -> Any:
    return make_model()


def test_one_branch_computes_it_for_both_bit_for_bit(small: Any) -> None:
    found, calls = counted(small, StepCache(exact(SETTING)))
    apart, calls_apart = counted(small, StepCache(exact(SETTING), share=False))
    plain = denoise(small, STEPS)
    assert (calls, calls_apart) == (STEPS, 2 * STEPS)
    assert all(
        torch.equal(one, other) and torch.equal(one, bare)
        for one, other, bare in zip(found, apart, plain, strict=True)
    )


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        # Half of the steps compute nothing of the first block.
        ("blocks[0:2]", 3),
        # cond skips the model in steps 1, 3 and 5, where uncond has to compute for itself.
        ("output", 6),
        # Both of these keep it themselves.
        ("attention[0:1]", 3),
        # A later block's is no matter.
        ("attention[1:3]", 6),
    ],
)
def test_it_is_shared_only_where_both_branches_compute_it(small: Any, name: str, calls: int) -> None:
    branches = ("cond",) if name == "output" else BRANCHES
    plan = masked(SETTING, Site.parse(name), [0, 2, 4], branches=branches)
    found, ran = counted(small, StepCache(plan))
    expected, _ = counted(small, StepCache(plan, share=False))
    assert ran == calls
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_other_latents_in_the_second_branch_are_not_given_the_first_s_attention(small: Any) -> None:
    texts = prompts()
    with torch.no_grad():
        expected = small(latents(9), timestep(0, STEPS), texts["uncond"]).sample
    cache = StepCache(exact(SETTING))
    with attached(small, cache), torch.no_grad():
        with cache.step(0, "cond"):
            small(latents(), timestep(0, STEPS), texts["cond"])
        with cache.step(0, "uncond"):
            assert torch.equal(small(latents(9), timestep(0, STEPS), texts["uncond"]).sample, expected)


def test_an_attention_that_nobody_took_is_not_taken_a_step_later(small: Any) -> None:
    texts, x = prompts(), latents()
    with torch.no_grad():
        expected = small(x, timestep(1, STEPS), texts["uncond"]).sample
    cache = StepCache(exact(SETTING))
    with attached(small, cache), torch.no_grad():
        with cache.step(0, "cond"):
            small(x, timestep(0, STEPS), texts["cond"])
        assert cache.held_bytes() > 0
        with cache.step(1, "uncond"):
            assert torch.equal(small(x, timestep(1, STEPS), texts["uncond"]).sample, expected)
        with cache.step(1, "cond"):
            small(x, timestep(1, STEPS), texts["cond"])
        assert cache.held_bytes() == 0


def test_it_is_not_held_for_a_branch_that_will_not_ask(small: Any) -> None:
    plan = masked(SETTING, OUTPUT, [0, 2, 4], branches=("uncond",))
    cache = StepCache(plan)
    texts = prompts()
    with attached(small, cache), torch.no_grad():
        for step, branch in [(0, "cond"), (0, "uncond"), (1, "cond")]:
            with cache.step(step, branch):
                small(latents(), timestep(step, STEPS), texts[branch])
        # Only the output of uncond, which step 1 will ask for.
        assert cache.held_bytes() == latents().numel() * 4


def test_it_is_shared_beside_kept_attention_and_output(small: Any) -> None:
    plan = joined(
        [masked(SETTING, OUTPUT, [0, 1, 3, 5]), masked(SETTING, Site.parse("attention[0:3]"), [0, 3, 5])]
    )
    found, calls = counted(small, StepCache(plan))
    expected, calls_apart = counted(small, StepCache(plan, share=False))
    assert (calls, calls_apart) == (3, 6)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
