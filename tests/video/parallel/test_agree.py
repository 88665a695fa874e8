"""What ranks compare before they generate, and that the pipeline compares it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from wan_folder import make_wan_folder

from sightline.errors import SightlineError, UsageError
from sightline.video.builders import fixed_interval
from sightline.video.making import Maker
from sightline.video.parallel import agree
from sightline.video.parallel.layout import Layout
from sightline.video.pipeline import VideoPipeline
from sightline.video.request import Request
from sightline.video.setting import Setting

REQUEST = Request("a three", width=32, height=32, frames=5, steps=4, guidance=3.0, shift=3.0)
SETTING = Setting(steps=4, weights="a" * 64, dtype="float32", device="cpu", versions={"torch": "2.13"})
PLAN = fixed_interval(Setting(steps=4), 2)


@pytest.mark.parametrize(
    ("request_", "setting", "plan", "names"),
    [
        (replace(REQUEST, seed=1), SETTING, PLAN, {"seed"}),
        (replace(REQUEST, negative_prompt="x", steps=5), SETTING, PLAN, {"negative prompt", "steps"}),
        (REQUEST, replace(SETTING, weights="b" * 64), PLAN, {"weights"}),
        (REQUEST, replace(SETTING, device="other", dtype="bfloat16"), PLAN, {"device", "dtype"}),
        (REQUEST, replace(SETTING, versions={"torch": "2.12"}), PLAN, {"version of torch"}),
        (REQUEST, SETTING, None, {"plan"}),
        (REQUEST, SETTING, fixed_interval(Setting(steps=4), 2, start=1), {"plan"}),
        (REQUEST, SETTING, replace(PLAN, order=2), {"plan"}),  # under the same name
        (REQUEST, SETTING, PLAN, set()),
    ],
)
def test_whatever_changes_a_video_is_compared(
    request_: Any, setting: Any, plan: Any, names: set[str]
) -> None:
    before, after = agree.facts(REQUEST, SETTING, PLAN), agree.facts(request_, setting, plan)
    assert {name for name in before | after if before.get(name) != after.get(name)} == names


def test_the_pipeline_compares_and_refuses_before_it_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_wan_folder(tmp_path / "model")
    pipeline = VideoPipeline.load(folder, dtype="fp32", device="cpu", layout=Layout(world=2, cfg=2))
    monkeypatch.setattr(VideoPipeline, "encode", lambda *_: pytest.fail("it began"))
    seen = []

    def refuse(layout: Layout, facts: dict[str, str]) -> None:
        seen.append((layout, facts["seed"]))
        raise SightlineError("not the same")

    monkeypatch.setattr(agree, "require_same", refuse)
    with pytest.raises(SightlineError, match="not the same"):
        pipeline.generate(replace(REQUEST, seed=7))
    assert seen == [(pipeline.layout, "7")]
    with pytest.raises(UsageError, match="--cfg-size 1, or a guidance scale above 1"):
        pipeline.generate(replace(REQUEST, guidance=1.0))
    # A row of a batch is one of its failures, not its end.
    with pytest.raises(UsageError, match="--cfg-size 1, or a guidance scale above 1"):
        Maker(pipeline, {}, lambda request: None).order_for(replace(REQUEST, guidance=1.0))
    with pytest.raises(UsageError, match="2 heads cannot be spread over 3 ranks"):
        VideoPipeline.load(folder, dtype="fp32", device="cpu", layout=Layout(world=3, ulysses=3))
