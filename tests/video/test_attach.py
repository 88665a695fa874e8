"""Attaching to diffusers' Wan: without trace afterwards, with its own pipeline's clock, and compiled."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tiny_wan import denoise, latents, make_model, prompts, timestep
from torch._dynamo.testing import CompileCounter

from sightline.errors import SightlineError
from sightline.video.attach import Attachment, attached
from sightline.video.builders import exact, fixed_interval, joined, masked
from sightline.video.cache import StepCache
from sightline.video.setting import Setting
from sightline.video.sites import OUTPUT, Action, Site

STEPS = 8
SETTING = Setting(steps=STEPS)
PLAN = joined(
    [
        masked(SETTING, Site.parse("blocks[1:3]"), [0, 1, 2, 5, 7], skipped=Action.EXTRAPOLATE),
        fixed_interval(SETTING, 2, start=2, site=Site.parse("attention[0:4]")),
        fixed_interval(SETTING, 3, start=4, site=OUTPUT),
    ]
)


@pytest.fixture
def model() -> Any:
    return make_model(layers=4)


def attributes(model: Any) -> dict[str, dict[str, Any]]:
    return {name: dict(module.__dict__) for name, module in model.named_modules()}


def test_a_detached_model_is_as_it_was(model: Any) -> None:
    own = model.blocks[1].forward
    model.blocks[1].forward = own
    before, plain = attributes(model), denoise(model, STEPS)
    attachment = Attachment(model, StepCache(PLAN), follow=True)
    assert attributes(model) != before
    attachment.detach()
    attachment.detach()
    assert attributes(model) == before
    assert torch.equal(denoise(model, STEPS)[-1], plain[-1])


def test_it_is_detached_after_an_exception(model: Any) -> None:
    before = attributes(model)
    with pytest.raises(ZeroDivisionError), attached(model, StepCache(PLAN)):
        raise ZeroDivisionError
    assert attributes(model) == before


def test_one_cache_at_a_time(model: Any) -> None:
    with attached(model, StepCache(PLAN)), pytest.raises(SightlineError, match="holds a step cache already"):
        Attachment(model, StepCache(PLAN))


def test_what_was_put_on_top_has_to_go_first(model: Any) -> None:
    attachment = Attachment(model, StepCache(PLAN))
    mine = model.forward
    model.forward = lambda *args, **kwargs: mine(*args, **kwargs)
    with pytest.raises(SightlineError, match="WanTransformer3DModel.forward was replaced"):
        attachment.detach()
    model.forward = mine
    attachment.detach()
    assert "forward" not in model.__dict__


def test_a_plan_of_a_larger_model_and_another_kind_of_model_are_refused(model: Any) -> None:
    plan = masked(SETTING, Site.parse("blocks[1:5]"), [0])
    with pytest.raises(SightlineError, match="the plan needs 5 blocks and the model has 4"):
        Attachment(model, StepCache(plan))
    with pytest.raises(SightlineError, match="a Linear has no blocks with attn1"):
        Attachment(torch.nn.Linear(1, 1), StepCache(PLAN))


def test_the_pipeline_s_own_contexts_are_the_clock(model: Any) -> None:
    cache = StepCache(PLAN)
    with attached(model, cache):
        expected = denoise(model, STEPS, cache.step)
    cache = StepCache(PLAN)
    with attached(model, cache, follow=True):
        found = denoise(model, STEPS, lambda step, branch: model.cache_context(branch, step_index=step))
    assert torch.equal(found[-1], expected[-1])


def test_a_pipeline_that_names_no_step_is_refused(model: Any) -> None:
    @contextmanager
    def older(name: str) -> Any:
        yield

    model.cache_context = older
    with (
        attached(model, StepCache(PLAN), follow=True),
        pytest.raises(SightlineError, match="update it to 0.42 or newer"),
        model.cache_context("cond"),
    ):
        pass


def test_diffusers_own_pipeline_runs_a_plan(model: Any) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    pipeline = WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=model,
    )
    pipeline.set_progress_bar_config(disable=True)
    texts = prompts()

    def generate() -> torch.Tensor:
        result = pipeline(
            prompt_embeds=texts["cond"],
            negative_prompt_embeds=texts["uncond"],
            num_inference_steps=STEPS,
            height=64,
            width=64,
            num_frames=9,
            latents=latents(),
            output_type="latent",
        )
        return result.frames

    plain = generate()
    calls = []
    hooks = [
        model.patch_embedding.register_forward_hook(lambda *given: calls.append("model")),
        model.blocks[0].attn1.to_q.register_forward_hook(lambda *given: calls.append("attention")),
    ]
    cache = StepCache(masked(SETTING, OUTPUT, [0, 1, 2, 4, 6]))
    with attached(model, cache, follow=True):
        cached = generate()
    with attached(model, StepCache(exact(SETTING)), follow=True):
        lossless = generate()
    for hook in hooks:
        hook.remove()
    # Five and then eight steps of two branches; the first block's attention is shared.
    assert (calls.count("model"), calls.count("attention")) == (2 * 13, 13)
    assert torch.equal(lossless, plain)
    assert 0 < float((cached - plain).norm() / plain.norm()) < 0.2
    assert cache.held_bytes() == 0


def test_compiled_blocks_run_a_plan_without_a_break_and_compile_no_more_the_second_time(model: Any) -> None:
    cache, counter = StepCache(PLAN), CompileCounter()
    with attached(model, cache):
        expected = denoise(model, STEPS, cache.step)
    torch._dynamo.reset()
    plain = denoise(model, STEPS)
    for block in model.blocks:
        block.compile(backend=counter, fullgraph=True)
    denoise(model, 1)
    # Attached to blocks that are compiled already.
    with attached(model, cache):
        found = denoise(model, STEPS, cache.step)
    compiled = counter.frame_count
    with attached(model, cache):
        again = denoise(model, STEPS, cache.step)
    assert compiled == counter.frame_count
    assert torch.equal(found[-1], expected[-1])
    assert torch.equal(again[-1], expected[-1])
    assert torch.equal(denoise(model, STEPS)[-1], plain[-1])


def test_the_whole_model_compiles_into_one_graph_for_each_thing_a_step_does() -> None:
    model = make_model(layers=2)
    # Three distances to the newest computed step, so three weights: of which no variant is made.
    plan = masked(SETTING, OUTPUT, [0, 1], skipped=Action.EXTRAPOLATE)
    cache, counter = StepCache(plan, share=False), CompileCounter()
    with attached(model, cache):
        expected = denoise(model, STEPS, cache.step)
    torch._dynamo.reset()
    whole = torch.compile(model, backend=counter, fullgraph=True)
    with attached(model, cache):
        found = denoise(whole, STEPS, cache.step)
    # Computing and storing, and (without a graph of its own for each weight) standing in.
    assert counter.frame_count == 2
    assert torch.equal(found[-1], expected[-1])


def test_a_cache_moves_nothing_between_devices_and_asks_no_tensor_for_its_value(model: Any) -> None:
    """On the meta device a tensor has no value: whatever looks at one fails."""
    shadow, text = model.to("meta"), torch.empty(1, 5, 16, device="meta")
    cache = StepCache(PLAN)
    with attached(shadow, cache), torch.no_grad():
        for step in range(STEPS):
            for branch in ("cond", "uncond"):
                with cache.step(step, branch):
                    output = shadow(
                        torch.empty(1, 4, 3, 8, 8, device="meta"), timestep(0, 1).to("meta"), text
                    )
                assert output.sample.device.type == "meta"
