"""The pipeline against diffusers' own, number for number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from wan_folder import make_wan_folder

from sightline import VideoPipeline
from sightline.errors import SightlineError, UsageError
from sightline.video.builders import exact, fixed_interval
from sightline.video.components import load_components
from sightline.video.denoise import Step
from sightline.video.parallel.layout import Layout
from sightline.video.plan import Plan
from sightline.video.sites import Site
from sightline.video.solvers import make_solver

SIZE: dict[str, Any] = {"width": 48, "height": 32, "frames": 9, "steps": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wan_folder(tmp_path_factory.mktemp("wan") / "model")


@pytest.fixture(scope="module")
def plain(folder: Path) -> VideoPipeline:
    return VideoPipeline.load(folder, dtype="fp32", device="cpu", operators=False)


@pytest.fixture
def theirs(folder: Path) -> Any:
    from diffusers import WanPipeline

    pipeline = WanPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def their_video(pipeline: Any, **settings: Any) -> torch.Tensor:
    video = pipeline(
        "a three moving left",
        negative_prompt=settings.pop("negative_prompt", ""),
        height=32,
        width=48,
        num_frames=9,
        num_inference_steps=5,
        generator=torch.Generator().manual_seed(7),
        output_type="pt",
        max_sequence_length=512,
        **settings,
    ).frames[0]
    assert isinstance(video, torch.Tensor)
    return video


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_video_equals_the_one_of_diffusers(plain: VideoPipeline, theirs: Any, guidance: float) -> None:
    ours = plain.generate(
        "a three moving left", seed=7, guidance=guidance, negative_prompt="a seven", shift=3.0, **SIZE
    )
    expected = their_video(theirs, guidance_scale=guidance, negative_prompt="a seven")
    assert ours.frames.shape == (9, 3, 32, 48)
    assert ours.frames.dtype == torch.float32
    assert float(ours.frames.std()) > 0.05
    torch.testing.assert_close(ours.frames, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("scheduler", ["dpm++", "euler"])
def test_other_solvers_equal_diffusers_with_them(plain: VideoPipeline, theirs: Any, scheduler: str) -> None:
    from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

    if scheduler == "euler":
        theirs.scheduler = FlowMatchEulerDiscreteScheduler(shift=6.0)
    else:
        theirs.scheduler = DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=6.0
        )
    quiet = SIZE | {"negative_prompt": ""}
    ours = plain.generate(
        "a three moving left", seed=7, guidance=4.0, shift=6.0, scheduler=scheduler, **quiet
    )
    unipc = plain.generate("a three moving left", seed=7, guidance=4.0, shift=6.0, **quiet)
    torch.testing.assert_close(ours.frames, their_video(theirs, guidance_scale=4.0), rtol=0, atol=2e-5)
    assert float((ours.frames - unipc.frames).abs().max()) > 1e-3


def test_a_plan_that_computes_everything_changes_no_bit(plain: VideoPipeline) -> None:
    request = plain.request("a three", guidance=3.0, **SIZE)
    with_plan = plain.generate(request, plan=exact(plain.setting(request)))
    assert torch.equal(with_plan.latents, plain.generate(request).latents)


def test_a_plan_does_what_it_says(plain: VideoPipeline) -> None:
    request = plain.request("a three", guidance=3.0, **SIZE)
    plan = fixed_interval(plain.setting(request), 2, start=1, site=Site.parse("blocks[1:3]"))
    reused = plain.generate(request, plan=plan)
    expected = plain.generate(request)
    assert reused.plan is plan
    assert not torch.equal(reused.latents, expected.latents)
    again = plain.generate(request, plan=plan)
    assert torch.equal(reused.latents, again.latents)
    assert torch.equal(plain.generate(request).latents, expected.latents)


def test_the_steps_are_those_of_the_plan_where_none_are_given(plain: VideoPipeline, tmp_path: Path) -> None:
    request = plain.request("a three", **(SIZE | {"steps": 2}))
    plan = exact(plain.setting(request))
    unsaid = {name: value for name, value in SIZE.items() if name != "steps"}
    assert plain.generate("a three", plan=plan, **unsaid).request.steps == 2
    plan.save(tmp_path / "plan.json")
    for path in (tmp_path / "plan.json", str(tmp_path / "plan.json")):
        assert plain.generate("a three", plan=path, **unsaid).plan == plan


def test_a_plan_for_something_else_is_refused_unless_asked(
    plain: VideoPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    request = plain.request("a three", **SIZE)
    other = plain.request("a three", **(SIZE | {"frames": 5}))
    plan = fixed_interval(plain.setting(other), 2)
    with pytest.raises(SightlineError, match=r"frames \(5, here 9\)"):
        plain.generate(request, plan=plan)
    plain.generate(request, plan=plan, plan_anyway=True)
    assert "frames (5, here 9)" in capsys.readouterr().err
    with pytest.raises(SightlineError, match=r"steps \(5, here 4\)"):
        plain.generate("a three", plan=plan, plan_anyway=True, **(SIZE | {"steps": 4}))


def test_a_seed_decides_and_is_repeated(plain: VideoPipeline) -> None:
    first, again, other = (plain.generate("a three", seed=seed, **SIZE).frames for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_every_step_is_told(plain: VideoPipeline) -> None:
    told: list[Step] = []
    video = plain.generate("a three", guidance=2.0, on_step=told.append, **SIZE)
    assert [step.index for step in told] == [0, 1, 2, 3, 4]
    assert {step.steps for step in told} == {5}
    assert [step.sigma for step in told] == sorted((step.sigma for step in told), reverse=True)
    assert all(set(step.velocities) == {"cond", "uncond"} for step in told)
    assert torch.equal(told[-1].latents, video.latents)
    assert video.seconds.keys() == {"text", "denoise", "decode"}


def test_a_generation_that_ends_early_leaves_the_model_as_it_was(plain: VideoPipeline) -> None:
    expected = plain.generate("a three", **SIZE).frames
    held = dict(plain.components.transformer.__dict__)

    def stop(step: Step) -> None:
        if step.index == 2:
            raise KeyboardInterrupt

    request = plain.request("a three", **SIZE)
    plan = fixed_interval(plain.setting(request), 2)
    with pytest.raises(KeyboardInterrupt):
        plain.generate(request, plan=plan, on_step=stop)
    assert plain.components.transformer.__dict__.keys() == held.keys()
    assert torch.equal(plain.generate("a three", **SIZE).frames, expected)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"width": 50}, "width must be a multiple of 8 for this model, not 50; take 48 or 56"),
        ({"height": 3}, "height must be a multiple of 8 for this model, not 3; take 8"),
        ({"frames": 8}, r"frames must be 4n \+ 1 for this model, not 8; take 5 or 9"),
        ({"steps": 0}, "steps must be a whole number from 1 to 1000, not 0"),
        ({"guidance": float("nan")}, "guidance must be a number from 0 to 1000, not nan"),
        ({"shift": 0}, "shift must be a number from above 0 to 1000, not 0"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"scheduler": "ddim"}, r"scheduler must be unipc, dpm\+\+, euler, not 'ddim'"),
        ({"prompt": " "}, "the prompt is empty"),
        ({"width": "48"}, "width must be a whole number from 1 to 16384, not '48'"),
        ({"size": "48x32"}, "request has no field 'size'; the fields are .*width"),
        ({"frames": 129}, "frames must be at most 125 for this model, not 129"),
        ({"height": 264}, "height must be at most 256 for this model, not 264"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(
    plain: VideoPipeline, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        plain.request(**({"prompt": "a three"} | SIZE | settings))


def test_a_prompt_that_is_too_long_is_said(plain: VideoPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    texts = plain.encode(plain.request("a three " * 300, **SIZE))
    assert texts["cond"].shape[1] == 512
    assert "a prompt has 601 tokens, and this model reads the first 512" in capsys.readouterr().err


def test_a_model_that_predicts_noise_is_refused(
    plain: VideoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import UniPCMultistepScheduler

    monkeypatch.setattr(plain.components, "scheduler", UniPCMultistepScheduler())
    with pytest.raises(SightlineError, match="predicts epsilon"):
        plain.generate("a three", **SIZE)


def test_a_setting_names_what_a_plan_is_held_against(plain: VideoPipeline, tmp_path: Path) -> None:
    request = plain.request("a three", shift=4.0, guidance=2.5, **SIZE)
    setting = plain.setting(request)
    assert (setting.width, setting.height, setting.frames, setting.steps) == (48, 32, 9, 5)
    assert (setting.shift, setting.guidance, setting.dtype) == (4.0, 2.5, "float32")
    assert setting.weights == plain.components.weights_fingerprint()
    plan = fixed_interval(setting, 2)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").setting == setting


def test_our_operators_give_the_same_video(plain: VideoPipeline, folder: Path) -> None:
    ours = VideoPipeline.load(folder, dtype="fp32", device="cpu").generate("a three", seed=3, **SIZE)
    torch.testing.assert_close(
        ours.latents, plain.generate("a three", seed=3, **SIZE).latents, rtol=0, atol=1e-4
    )


def test_texts_may_be_encoded_before(plain: VideoPipeline) -> None:
    request = plain.request("a three", seed=3, **SIZE)
    other = plain.encode(plain.request("a seven", **SIZE))
    assert torch.equal(
        plain.generate(request, texts=other).latents, plain.generate("a seven", seed=3, **SIZE).latents
    )


def test_texts_of_another_guidance_are_refused(plain: VideoPipeline) -> None:
    alone = plain.encode(plain.request("a three", guidance=1.0, **SIZE))
    with pytest.raises(UsageError, match="guidance 3 takes texts of cond and uncond, not of cond"):
        plain.generate("a three", guidance=3.0, texts=alone, **SIZE)
    both = plain.encode(plain.request("a three", guidance=3.0, **SIZE))
    with pytest.raises(UsageError, match="guidance 1 takes texts of cond, not of cond and uncond"):
        plain.generate("a three", guidance=1.0, texts=both, **SIZE)


def test_settings_beside_a_whole_request_are_refused(plain: VideoPipeline) -> None:
    with pytest.raises(UsageError, match="steps is given beside a whole request"):
        plain.generate(plain.request("a three", **SIZE), steps=3)


def test_what_is_given_back_can_be_changed(plain: VideoPipeline) -> None:
    for frames in (1, 5):
        video = plain.generate("a three", **(SIZE | {"frames": frames, "steps": 1}))
        assert video.frames.is_contiguous()
        for tensor in (video.frames, video.latents, *plain.encode(video.request).values()):
            assert not tensor.is_inference()
            tensor.mul_(2)


def test_the_tiny_model_lends_no_parts(folder: Path, tmp_path: Path) -> None:
    files = {
        "transformer_file": folder / "transformer",
        "vae_file": folder / "vae",
        "text_encoder_file": folder / "text_encoder",
    }
    with pytest.raises(UsageError, match="give a model's folder, or tokenizer as well as the other parts"):
        VideoPipeline.load(**files)
    whole = VideoPipeline.load(**files, tokenizer=folder / "tokenizer", dtype="fp32", device="cpu")
    assert whole.components.folder is None


def test_components_that_a_layout_does_not_take_stay_as_they_were(folder: Path) -> None:
    parts = load_components(folder, dtype="fp32", device="cpu")
    with pytest.raises(UsageError, match="heads cannot be spread over 3 ranks"):
        VideoPipeline(parts, layout=Layout(world=3, ulysses=3))
    assert VideoPipeline(parts).generate("a three", **SIZE).frames.shape == (9, 3, 32, 48)


def test_only_what_a_model_says_of_its_solver_holds(plain: VideoPipeline) -> None:
    from diffusers import DPMSolverMultistepScheduler

    request = plain.request("a three", scheduler="dpm++", **SIZE)
    theirs = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        solver_order=3,
        algorithm_type="sde-dpmsolver++",  # would draw noise that no seed decides
        use_karras_sigmas=True,
        final_sigmas_type="sigma_min",
    )
    config = make_solver(request, theirs, torch.device("cpu")).config
    assert (config.solver_order, config.algorithm_type) == (3, "dpmsolver++")
    assert (config.use_karras_sigmas, config.final_sigmas_type) == (False, "zero")


def test_a_video_that_does_not_fit_says_what_saves_memory(
    plain: VideoPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **named: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(plain.components.vae, "_decode", full)
    with pytest.raises(SightlineError, match=r"48x32x9 does not fit on cpu .decode. .2.00 GiB .*tile_vae"):
        plain.generate("a three", **SIZE)
