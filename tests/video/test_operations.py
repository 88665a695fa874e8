"""Operations as torch counts them, and the figures of Wan2.1."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_wan import BRANCHES, SHAPE, latents, make_model, prompts, timestep
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from wan_folder import make_text_encoder, make_vae

from sightline.errors import UsageError
from sightline.video import operations, roofline
from sightline.video.attach import attached
from sightline.video.builders import fixed_interval, uncond_only
from sightline.video.cache import StepCache
from sightline.video.operations import Work, decode_work, denoising_work, forward_work, text_work, total
from sightline.video.plan import Plan
from sightline.video.setting import Setting
from sightline.video.sites import Action, Site

WAN = {"attention_head_dim": 128, "in_channels": 16, "out_channels": 16, "patch_size": (1, 2, 2)}
SMALL = SimpleNamespace(
    **WAN, num_attention_heads=12, num_layers=30, ffn_dim=8960, text_dim=4096, freq_dim=256
)
LARGE = SimpleNamespace(
    **WAN, num_attention_heads=40, num_layers=40, ffn_dim=13824, text_dim=4096, freq_dim=256
)


@pytest.fixture(autouse=True)
def plain_attention() -> Any:
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


def counted(call: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def call(model: Any, branch: str = "cond", step: int = 1) -> Any:
    return model(latents(), timestep(step, 6), prompts()[branch], return_dict=False)


def tera(work: Work) -> float:
    return work.operations / 1e12


def test_a_forward_is_what_torch_counts() -> None:
    model = make_model()
    parts = forward_work(model.config, SHAPE, 5)
    assert total(parts).operations == counted(lambda: call(model))
    two = forward_work(model.config, (2, *SHAPE[1:]), 5)
    assert total(two).operations == 2 * total(parts).operations


def test_the_small_wan_of_480p() -> None:
    shape = operations.latents_of(SMALL, 832, 480, 81)
    assert shape == (1, 16, 21, 60, 104)
    assert operations.tokens_of(SMALL, shape) == 32_760
    parts = forward_work(SMALL, shape)
    given = {name: round(tera(work), 2) for name, work in parts.items()}
    assert given == {
        "self_projections": 18.55,
        "self_attention": 197.82,
        "cross_projections": 9.42,
        "cross_attention": 3.09,
        "ffn": 54.10,
        "elementwise": 0.0,
        "embeddings": 0.02,
        "head": 0.01,
    }
    blocks = sum(tera(work) for name, work in parts.items() if name not in ("embeddings", "head"))
    assert round(blocks, 1) == 283.0
    assert (tera(parts["embeddings"]) + tera(parts["head"])) / blocks < 0.001
    whole = total(denoising_work(SMALL, shape, 50, share=False))
    assert round(tera(whole) / 1000, 1) == 28.3
    assert round(whole.seconds(989e12), 1) == 28.6


@pytest.mark.parametrize(
    ("config", "frames", "peta"), [(SMALL, 49, 12.9), (SMALL, 33, 7.3), (SMALL, 17, 3.2), (LARGE, 81, 167.8)]
)
def test_other_sizes(config: Any, frames: int, peta: float) -> None:
    shape = operations.latents_of(config, 832, 480, frames)
    whole = total(denoising_work(config, shape, 50, share=False))
    assert round(tera(whole) / 1000, 1) == peta


def test_a_text_encoder_is_what_torch_counts() -> None:
    encoder = make_text_encoder()
    ids = torch.ones(1, 7, dtype=torch.long)
    assert text_work(encoder.config, 7).operations == counted(lambda: encoder(ids))


@pytest.mark.parametrize("frames", [1, 3])
def test_decoding_is_what_torch_counts(frames: int) -> None:
    vae = make_vae()
    shape = (1, 4, frames, 4, 6)
    assert decode_work(vae.config, shape).operations == counted(lambda: vae.decode(torch.zeros(shape)))


def test_decoding_with_the_real_vae_is_what_torch_counts() -> None:
    from diffusers import AutoencoderKLWan

    with torch.device("meta"):
        vae = AutoencoderKLWan().eval()
        shape = (1, 16, 3, 6, 10)
        given = torch.zeros(shape)
    assert decode_work(vae.config, shape).operations == counted(lambda: vae.decode(given))


def setting(steps: int = 6) -> Setting:
    return Setting(steps=steps)


def rows(**sites: str) -> dict[Site, tuple[Action, ...]]:
    return {Site.parse(name): tuple(map(Action, row)) for name, row in sites.items()}


PLANS = {
    "exact": Plan(setting()),
    "output": fixed_interval(setting(), 2),
    "blocks": fixed_interval(setting(), 3, site=Site.parse("blocks[1:3]")),
    "first block": fixed_interval(setting(), 2, site=Site.parse("blocks[0:1]"), branches=("cond",)),
    "attention": fixed_interval(setting(), 2, site=Site.parse("attention[0:2]")),
    "both": Plan(
        setting(),
        {
            "cond": rows(**{"blocks[2:3]": "CRCRCR", "attention[0:3]": "CCRRCR"}),
            "uncond": rows(**{"output": "CRRCRC", "blocks[0:2]": "CCCRCC"}),
        },
    ),
    "uncond": uncond_only(setting(), 2),
}


@pytest.mark.parametrize(
    ("name", "branches", "share"),
    [
        *((name, BRANCHES, True) for name in PLANS),
        ("exact", BRANCHES, False),
        ("exact", ("cond",), True),
        ("both", ("uncond",), True),
        ("attention", ("cond",), False),
    ],
)
def test_a_plan_computes_what_torch_counts(name: str, branches: tuple[str, ...], share: bool) -> None:
    plan, model, x = PLANS[name], make_model(), latents()

    def run() -> None:
        with attached(model, StepCache(plan, share=share)) as cache:
            for step in range(plan.steps):
                for branch in branches:
                    with cache.step(step, branch):
                        model(x, timestep(step, 6), prompts()[branch], return_dict=False)

    work = denoising_work(model.config, SHAPE, plan.steps, 5, branches=branches, plan=plan, share=share)
    assert total(work).operations == counted(run)


def test_a_plan_of_other_steps_is_refused() -> None:
    with pytest.raises(UsageError, match="the plan has 6 steps and the generation 5"):
        denoising_work(SMALL, SHAPE, 5, plan=PLANS["output"])


def test_bytes_are_weights_and_tokens() -> None:
    model = make_model()
    few = total(forward_work(model.config, SHAPE, 5, size=4)).bytes
    weights = sum(
        each.numel() for name, each in model.named_parameters() if name.endswith("weight") and each.dim() > 1
    )
    more = total(forward_work(model.config, (2, *SHAPE[1:]), 5, size=4)).bytes
    assert 2 * few - more == 4 * weights  # the weights are read once for a batch
    assert total(forward_work(model.config, SHAPE, 5, size=2)).bytes * 2 == few
    elementwise = forward_work(SMALL, (1, 16, 21, 60, 104))["elementwise"]
    assert elementwise.bytes == 30 * 15 * 32_760 * 1536 * 2
    assert elementwise.seconds(1e15, 4.8e12) == elementwise.bytes / 4.8e12


def test_shares_of_a_ceiling() -> None:
    assert roofline.roofline(2.0, 3e12, 6e12) == 0.25
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="must be above 0"):
            roofline.roofline(wrong, 1.0, 1.0)
        with pytest.raises(UsageError, match="must be above 0"):
            roofline.roofline(1.0, 1.0, wrong)
    with pytest.raises(UsageError, match=r"Wan2.2's VAE"):
        decode_work(SimpleNamespace(is_residual=True), SHAPE)


def test_a_machine_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.hardware.operators.dense_attention import measure

    monkeypatch.setattr(measure, "product_rate", lambda device, dtype: 3e12)
    roofline.ceiling.cache_clear()
    cpu = torch.device("cpu")
    assert roofline.ceiling(cpu, torch.float32) == 3e12
    monkeypatch.setattr(measure, "product_rate", lambda device, dtype: 4e12)
    assert roofline.ceiling(cpu, torch.float32) == 3e12
    roofline.ceiling.cache_clear()
    assert roofline.bandwidth(cpu) > 1e8


def test_convolutions_in_tf32_have_the_ceiling_of_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.hardware.operators.dense_attention import measure

    monkeypatch.setattr(
        measure,
        "product_rate",
        lambda device, dtype: {"high": 2.0}.get(torch.get_float32_matmul_precision(), 1.0),
    )
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    roofline.ceiling.cache_clear()
    cuda = torch.device("cuda", 0)
    assert roofline.ceiling(cuda, torch.float32) == 1.0
    assert roofline.ceiling(cuda, torch.float32, convolutions=True) == 2.0
    assert roofline.ceiling(cuda, torch.bfloat16, convolutions=True) == 1.0
    assert roofline.ceiling(torch.device("cpu"), torch.float32, convolutions=True) == 1.0
    assert torch.get_float32_matmul_precision() == "highest"
    roofline.ceiling.cache_clear()


def test_figures_of_a_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        roofline, "ceiling", lambda device, dtype, **rest: 1e9 if dtype == torch.bfloat16 else 2e9
    )
    model, vae, encoder = make_model(), make_vae(), make_text_encoder()
    parts: Any = SimpleNamespace(
        transformer=model,
        vae=vae,
        text_encoder=encoder,
        defaults=SimpleNamespace(text_length=5),
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )
    request: Any = SimpleNamespace(width=32, height=32, frames=9, steps=6, branches=BRANCHES)
    plan = PLANS["output"]
    found = roofline.figures(parts, request, {"denoise": 0.5, "decode": 0.25}, plan=plan, devices=2)
    spent = total(denoising_work(model.config, SHAPE, 6, 5, plan=plan)).operations
    exact = total(denoising_work(model.config, SHAPE, 6, 5, share=False)).operations
    decoded = decode_work(vae.config, SHAPE).operations
    about = {"rel": 1e-3}
    assert found["denoise"]["tflop"] == pytest.approx(spent / 1e12, **about)
    assert found["denoise"]["tflop_without_plan"] == pytest.approx(exact / 1e12, **about)
    assert found["denoise"]["share"] == pytest.approx(spent / 0.5 / 2e9, **about)
    assert found["decode"]["share"] == pytest.approx(decoded / 0.25 / 4e9, **about)
    assert found["text"] == {
        "tflop": pytest.approx(2 * text_work(encoder.config, 5).operations / 1e12, **about)
    }
    assert found["ceiling_tflops"] == {"bfloat16": 0.001, "float32": 0.002}
    card = torch.device("meta")
    monkeypatch.setattr(roofline, "ceiling", lambda device, dtype, **rest: 3e9 if device == card else 1e9)
    parts.device, parts.text_device = card, torch.device("cpu")
    apart = roofline.figures(parts, request, {"text": 0.5, "denoise": 0.5})
    assert apart["text"]["share"] == pytest.approx(apart["text"]["tflop"] * 1e12 / 0.5 / 1e9, **about)
    assert apart["ceiling_tflops"] == {"bfloat16": 0.003, "bfloat16 on cpu": 0.001}
