"""Wan's blocks by our operators: what diffusers computes, under whatever else is put around them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_wan import denoise, latents, make_model, prompts, timestep

from sightline.errors import SightlineError, UsageError
from sightline.hardware.operators.dense_attention import attention_forward
from sightline.video import wan_blocks, wan_parts
from sightline.video.attach import attached
from sightline.video.cache import StepCache
from sightline.video.plan import Plan
from sightline.video.setting import Setting
from sightline.video.sites import Action, Site
from sightline.video.wan_blocks import WanAttention, use_operators


@pytest.fixture
def model() -> Iterator[Any]:
    with torch.no_grad():
        yield make_model()


def output(model: Any, batch: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    x, text = latents().expand(batch, -1, -1, -1, -1), prompts()["cond"].expand(batch, -1, -1)
    time = timestep(3, 10).expand(batch)
    sample: torch.Tensor = model(x.to(dtype), time, text.to(dtype), return_dict=False)[0]
    return sample


def same(given: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((given - expected).norm() <= 1e-5 * expected.norm()) and not torch.equal(given, expected)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_model_computes_what_diffusers_computes(model: Any, batch: int) -> None:
    expected = output(model, batch)
    use_operators(model, opt_mode="static")
    torch.testing.assert_close(output(model, batch), expected, rtol=1e-5, atol=1e-5)


def test_every_part_is_ours(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: dict[str, int] = {}

    def count(name: str, home: Any = wan_blocks) -> None:
        real = getattr(home, name)

        def counting(*args: Any, **kwargs: Any) -> Any:
            counted[name] = counted.get(name, 0) + 1
            return real(*args, **kwargs)

        monkeypatch.setattr(home, name, counting)

    for name in ("attention_forward", "rotated", "modulated", "normed", "gated", "activation"):
        count(name)
    use_operators(model, opt_mode="static")
    output(model)
    assert counted == {
        "attention_forward": 6,
        "rotated": 6,
        "modulated": 6,
        "normed": 3,
        "gated": 6,
        "activation": 3,
    }


def test_in_bf16_it_is_as_near_to_float32_as_diffusers(model: Any) -> None:
    expected = output(model)
    narrow = copy.deepcopy(model).to(torch.bfloat16)
    theirs = (output(narrow, dtype=torch.bfloat16).float() - expected).norm()
    use_operators(narrow, opt_mode="static")
    ours = (output(narrow, dtype=torch.bfloat16).float() - expected).norm()
    assert ours <= 1.1 * theirs
    assert ours <= 0.012 * expected.norm()


def test_with_a_time_for_each_token_it_computes_what_diffusers_computes(model: Any) -> None:
    times = torch.linspace(100, 900, 48)[None]
    expected = model(latents(), times, prompts()["cond"], return_dict=False)[0]
    use_operators(model, opt_mode="static")
    given = model(latents(), times, prompts()["cond"], return_dict=False)[0]
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_diffusers() -> None:
    model = make_model()

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        output(model).square().mean().backward()
        return {name: each.grad.clone() for name, each in model.named_parameters()}

    expected = gradients()
    use_operators(model, opt_mode="static")
    for name, given in gradients().items():
        torch.testing.assert_close(given, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_undo_gives_the_model_back(model: Any) -> None:
    before = [(type(each), dict(each.__dict__)) for each in model.modules()]
    expected = output(model)
    operators = use_operators(model, opt_mode="static")
    operators.undo()
    operators.undo()
    after = [(type(each), dict(each.__dict__)) for each in model.modules()]
    assert [kind for kind, _ in after] == [kind for kind, _ in before]
    assert [sorted(names) for _, names in after] == [sorted(names) for _, names in before]
    assert torch.equal(output(model), expected)


def plan() -> Plan:
    rows = "CCRRCR"
    site = {Site.parse("blocks[1:3]"): tuple(Action(letter) for letter in rows)}
    return Plan(Setting(steps=len(rows)), {"cond": site, "uncond": site})


@pytest.mark.parametrize("first", ["operators", "cache"])
def test_a_step_cache_may_come_before_or_after(model: Any, first: str) -> None:
    def cached(*, ours: str) -> list[torch.Tensor]:
        used = use_operators(model, opt_mode="static") if ours == "first" else None
        with attached(model, StepCache(plan())) as cache:
            if ours == "last":
                used = use_operators(model, opt_mode="static")
            found = denoise(model, plan().steps, cache.step)
        if used is not None:
            assert type(model.blocks[1]) is wan_blocks.WanTransformerBlock
            assert "forward" not in model.blocks[1].__dict__
            used.undo()
        return found

    expected = cached(ours="never")
    given = cached(ours="first" if first == "operators" else "last")
    assert same(given[-1], expected[-1])


def test_undo_under_a_step_cache_leaves_it_in_place(model: Any) -> None:
    operators = use_operators(model, opt_mode="static")
    with attached(model, StepCache(plan())) as cache:
        operators.undo()
        given = denoise(model, plan().steps, cache.step)
    with attached(model, StepCache(plan())) as cache:
        assert torch.equal(given[-1], denoise(model, plan().steps, cache.step)[-1])


def offload(model: Any) -> None:
    cpu = torch.device("cpu")
    model.enable_group_offload(cpu, cpu, offload_type="block_level", num_blocks_per_group=1)


def cast(model: Any) -> None:
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)


def dispatch(model: Any) -> None:
    cpu_offload = pytest.importorskip("accelerate").cpu_offload

    cpu_offload(model, torch.device("cpu"), offload_buffers=True)


def fuse(model: Any) -> None:
    for block in model.blocks:
        block.attn1.fuse_projections()
        block.attn2.fuse_projections()


@pytest.mark.parametrize("first", ["operators", "helper"])
@pytest.mark.parametrize("helper", [offload, cast, dispatch, fuse])
def test_helpers_of_memory_may_come_before_or_after(model: Any, helper: Any, first: str) -> None:
    plain = copy.deepcopy(model)
    helper(plain)
    expected = output(plain)
    if first == "helper":
        helper(model)
    operators = use_operators(model, opt_mode="static")
    if first == "operators":
        helper(model)
    assert same(output(model), expected)
    operators.undo()
    assert torch.equal(output(model), expected)


def test_a_hook_that_is_gone_is_no_hindrance(model: Any) -> None:
    from diffusers.hooks import HookRegistry, ModelHook

    registry = HookRegistry.check_if_exists_or_initialize(model.blocks[0])
    registry.register_hook(ModelHook(), "passing")
    registry.remove_hook("passing")
    assert "forward" in model.blocks[0].__dict__  # what removing leaves behind
    use_operators(model, opt_mode="static")
    assert model.blocks[0].forward.__func__ is wan_blocks.WanTransformerBlock.forward


def test_offloaded_weights_come_for_every_call(model: Any) -> None:
    use_operators(model, opt_mode="static")
    dispatch(model)
    assert model.blocks[0].attn1.norm_q.weight.device.type == "meta"
    output(model)
    assert model.blocks[0].attn1.norm_q.weight.device.type == "meta"


@pytest.mark.parametrize("first", ["operators", "compiled"])
def test_a_compiled_block_is_one_graph(model: Any, first: str) -> None:
    expected = output(model)
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph.code)
        return graph.forward

    torch._dynamo.reset()
    if first == "operators":
        use_operators(model, opt_mode="static")
        model.compile_repeated_blocks(backend=backend, fullgraph=True)
    else:
        model.compile_repeated_blocks(backend=backend, fullgraph=True)
        use_operators(model, opt_mode="static")
    torch.testing.assert_close(output(model), expected, rtol=1e-5, atol=1e-5)
    (graph,) = graphs  # one for all blocks
    assert "complex" not in graph  # which torch.compile cannot fuse


def test_a_shape_that_was_measured_is_part_of_the_graph(
    model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path))
    expected = output(model)
    use_operators(model)
    output(model)
    torch._dynamo.reset()
    model.compile_repeated_blocks(backend="eager", fullgraph=True)
    torch.testing.assert_close(output(model), expected, rtol=1e-5, atol=1e-5)


def test_attention_can_be_replaced(model: Any) -> None:
    expected, seen = output(model), []

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        seen.append((query.shape, key.shape, value.shape))
        return attention_forward(query, key, value, opt_mode="static")

    use_operators(model, opt_mode="static")
    for block in model.blocks:
        block.attn1.processor.attend = attend
    torch.testing.assert_close(output(model), expected, rtol=1e-5, atol=1e-5)
    assert seen == [((1, 48, 2, 12),) * 3] * 3


def test_attention_to_a_picture_stays_with_diffusers() -> None:
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4}
    sizes |= {"text_dim": 16, "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32}
    model = WanTransformer3DModel(**sizes, image_dim=8, added_kv_proj_dim=24).eval()
    text, picture = torch.randn(1, 512, 16), torch.randn(1, 7, 8)
    with torch.no_grad():
        expected = model(latents(), timestep(0, 4), text, picture, return_dict=False)[0]
        use_operators(model, opt_mode="static")
        assert isinstance(model.blocks[0].attn1.processor, WanAttention)
        assert not isinstance(model.blocks[0].attn2.processor, WanAttention)
        given = model(latents(), timestep(0, 4), text, picture, return_dict=False)[0]
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)


def test_misuse_is_refused_and_changes_nothing(model: Any) -> None:
    kinds = [type(each) for each in model.modules()]
    with pytest.raises(UsageError, match="'manual' .* is not one of runtime, static"):
        use_operators(model, opt_mode="manual")
    with pytest.raises(SightlineError, match="a Linear does not consist of diffusers' Wan blocks"):
        use_operators(torch.nn.Linear(2, 2))
    last = model.blocks[-1]
    last.forward = lambda *args: args[0]
    with pytest.raises(SightlineError, match="the forward of a WanTransformerBlock was replaced"):
        use_operators(model)
    del last.forward
    theirs = last.attn2.processor
    last.attn2.set_processor(WanAttention())
    with pytest.raises(SightlineError, match="WanAttention is in the place of Wan's attention processor"):
        use_operators(model)
    last.attn2.set_processor(theirs)
    assert [type(each) for each in model.modules()] == kinds
    operators = use_operators(model, opt_mode="static")
    with pytest.raises(SightlineError, match="by our operators already"):
        use_operators(model)
    last.attn1.set_processor(theirs)
    with pytest.raises(SightlineError, match="set after use_operators"):
        operators.undo()
    with pytest.raises(UsageError, match="takes no attention_mask"):
        last.attn2(torch.zeros(1, 4, 24), torch.zeros(1, 5, 24), torch.ones(4, 5).bool())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_forms_of_the_cpu_are_as_exact_as_the_definition(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    x, change = drawn(1, 9, 64).to(dtype), drawn(1, 9, 64).to(dtype)
    scale, shift, gate = drawn(1, 1, 64), drawn(1, 1, 64), drawn(1, 1, 64)
    angles = drawn(1, 9, 1, 8).repeat_interleave(2, -1)
    plain = torch.nn.LayerNorm(64, eps=1e-6, elementwise_affine=False)
    weighted = torch.nn.LayerNorm(64, eps=1e-6).to(dtype)
    torch.nn.init.normal_(weighted.weight)
    torch.nn.init.normal_(weighted.bias)
    heads = x.unflatten(2, (4, -1))
    calls = (
        lambda: wan_parts.modulated(plain, x, scale, shift),
        lambda: wan_parts.normed(weighted, x),
        lambda: wan_parts.gated(x, change, gate),
        lambda: wan_parts.rotated(heads, angles.cos(), angles.sin()),
    )
    for number, call in enumerate(calls):
        with torch.enable_grad():
            expected = call()  # the definition
        with torch.no_grad():
            given = call()
        assert given.dtype == dtype
        error = (given.double() - expected.double()).norm() / expected.double().norm()
        assert error <= (1e-6 if dtype == torch.float32 else 0.001), number
