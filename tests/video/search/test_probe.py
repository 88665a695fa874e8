"""The probe on a Wan with random weights: what it records, and that it leaves nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from wan_folder import make_wan_folder

from sightline.video.pipeline import VideoPipeline
from sightline.video.search import probe as probing
from sightline.video.search.calibrate import measured_growth
from sightline.video.search.drafts import Draft, make_plan, predicted_error
from sightline.video.search.errors import Errors
from sightline.video.search.generations import PipelineRunner
from sightline.video.search.measure import Measure, Subject
from sightline.video.search.record import LONGEST, ProbeRecord
from sightline.video.search.state import State

STEPS, SUBJECT = 10, Subject("a three moving left", 0)


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> PipelineRunner:
    folder = make_wan_folder(tmp_path_factory.mktemp("wan") / "model")
    pipeline = VideoPipeline.load(folder, device="cpu", dtype="fp32")
    return PipelineRunner(pipeline, {"width": 32, "height": 32, "frames": 5, "steps": STEPS, "shift": 3.0})


@pytest.fixture(scope="module")
def record(runner: PipelineRunner) -> ProbeRecord:
    return runner.probe(SUBJECT, STEPS)


def test_it_records_the_products_of_what_the_branches_gave(
    runner: PipelineRunner, record: ProbeRecord
) -> None:
    seen: list[Any] = []
    request = runner.request(SUBJECT)
    runner.pipeline.denoise(request, runner.pipeline.encode(request), on_step=seen.append)
    one, other = seen[7].velocities["cond"].double(), seen[4].velocities["uncond"].double()
    assert record.outputs[0, 7, 1, 4] == pytest.approx(float((one * other).mean()), rel=1e-4)
    assert record.sigmas[:-1].tolist() == pytest.approx([step.sigma for step in seen])
    assert record.sigmas[-1] == 0
    assert record.final[0] == pytest.approx(float(seen[-1].latents.double().square().mean()), rel=1e-4)


def test_it_records_how_far_what_blocks_change_moved(runner: PipelineRunner, record: ProbeRecord) -> None:
    transformer = runner.pipeline.components.transformer
    changes: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda module, given, output: changes.append(output - given[0]))
        for block in transformer.blocks
    ]
    request = runner.request(SUBJECT)
    runner.pipeline.denoise(request, runner.pipeline.encode(request))
    for hook in hooks:
        hook.remove()
    # Calls go step by step, cond first; blocks one after the other.
    moved = [changes[(5 * 2 + 1) * 3 + block] - changes[(3 * 2 + 1) * 3 + block] for block in (1, 2)]
    expected = float(sum(moved).double().square().mean())  # type: ignore[union-attr, arg-type]
    assert record.blocks[1, 1, 5, 1:3, 1:3].sum() == pytest.approx(expected, rel=1e-3)
    assert np.isnan(record.blocks[:, 2, 2]).all()
    assert np.isfinite(record.attention[:, 0, 1:]).all()


def test_seconds_are_shares_of_a_call(record: ProbeRecord) -> None:
    assert (record.call_seconds > 0).all()
    assert 0.3 < record.block_seconds.sum() < 1
    assert (record.attention_seconds < record.block_seconds).all()


def test_it_holds_no_more_than_a_window_and_leaves_no_hook(
    runner: PipelineRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probing, "BLOCK_SAMPLE", 16)
    transformer = runner.pipeline.components.transformer
    request = runner.request(SUBJECT)
    probe = probing.Probe(3, STEPS, 2)
    sizes = []
    with probe.installed(transformer):
        runner.pipeline.denoise(
            request,
            runner.pipeline.encode(request),
            on_step=lambda step: (probe.on_step(step), sizes.append(len(probe._past)))[0],
        )
    assert max(sizes) == 2 * (LONGEST + 1)
    assert all(changes.shape == (3, 16) for changes, _ in probe._past.values())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in transformer.modules())


def test_predicted_errors_order_plans_as_the_real_model_does(
    runner: PipelineRunner, record: ProbeRecord, tmp_path: Path
) -> None:
    measure = Measure(runner, State(tmp_path / "state", {}))
    guidance = measure.setting.guidance
    assert guidance is not None
    errors, _ = measured_growth(measure, SUBJECT, Errors((record,), guidance, np.ones(STEPS)))
    assert not np.allclose(errors.growth, 1)
    random = np.random.default_rng(1)
    predicted, real = [], []
    for way in ("fitted", "extrapolated", "reused") * 5:
        steps = (
            0,
            *sorted(random.choice(np.arange(1, STEPS), int(random.integers(3, 9)), replace=False).tolist()),
        )
        draft = Draft(steps, steps, way, 2)
        predicted.append(predicted_error(errors, draft))
        real.append(
            measure.trial(make_plan(errors, draft, measure.setting), SUBJECT, decode=False).latent_error
        )
    ranks = np.corrcoef(np.argsort(np.argsort(predicted)), np.argsort(np.argsort(real)))
    assert ranks[0, 1] > 0.7
