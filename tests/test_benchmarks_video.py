"""The benchmark of step caching runs, tells every failure, and compares at equal fidelity."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import video_cache
from caching import contestants, report, worker
from caching.contest import Result
from caching.contestants import Contestant, Scouted
from caching.engines.wan_pipeline import calibrated, configured
from caching.job import Job
from caching.process import Worker
from caching.scout import spread
from wan_folder import make_wan_folder

from sightline.errors import SightlineError
from sightline.files import write_json
from sightline.video.builders import fixed_interval
from sightline.video.fidelity import MOST_PSNR, Fidelity
from sightline.video.setting import Setting
from sightline.video.sheets.front import Row

STEPS = 6


def fidelity(psnr: float) -> Fidelity:
    return Fidelity(psnr, psnr - 1, 0.9, 0.8, 0.9, 0.8, 0.1, 0.2, 1.0, 3)


def result(kind: str, family: str, seconds: float, psnr: float, operations: float = 1e9) -> Result:
    engine = "ours" if kind == "ours" else "wan_pipeline"
    label = {"ours": "ours", "peer": "diffusers"}[kind] if family == "exact" else f"{seconds:g}"
    one = Contestant(family, label, kind, engine, "exact")
    # Another round that is worse in both would change the median and the worst.
    return Result(one, [seconds], [fidelity(psnr), fidelity(psnr + 5)], operations)


def job(method: str, steps: int = STEPS, **knobs: Any) -> Job:
    return Job(method, "in", "out", steps, 5.0, 3.0, 32, 32, 5, knobs)


def test_a_front_is_read_between_its_settings_and_not_beyond_them() -> None:
    front = [
        Row("a", "f", "peer", 1.0, 20.0),
        Row("b", "f", "peer", 2.0, 30.0),
        Row("c", "f", "peer", 4.0, math.inf),
    ]
    assert report.cost_at(front, 20.0) == 1.0
    assert report.cost_at(front, 25.0) == 1.5
    assert report.cost_at(front, 30.0) == 2.0
    assert report.cost_at(front, 45.0) == 4.0
    assert report.cost_at(front, 19.9) is None
    assert report.cost_at(front[:2], 30.1) is None
    assert report.cost_at([], 30.0) is None


def test_ours_is_held_against_the_best_of_all_peers() -> None:
    found = [
        result("peer", "exact", 9.0, 100.0),
        result("ours", "exact", 8.0, 100.0),
        result("peer", "slow", 4.0, 30.0),
        result("peer", "slow", 2.0, 20.0),
        result("peer", "quick", 3.0, 30.0),
        result("ours", "plans", 1.0, 25.0),
        result("ours", "plans", 2.0, 30.0),
        result("ours", "plans", 9.0, 29.0),  # beaten by our own
        result("ours", "plans", 5.0, 40.0),  # no peer comes so near
    ]
    head = report.headline(found)
    assert [(point["psnr"], point["ours"], point["peer"]) for point in head["points"]] == [
        (25, 1, 2.5),
        (30, 2, 3),
    ]
    assert (head["least"], head["median"], head["most"]) == (1.5, 2.0, 2.5)
    assert report.headline(found[:5])["points"] == []
    # Without rules by anyone: a baseline is neither ours nor a peer.
    found[5].contestant.__dict__["kind"] = "baseline"
    assert len(report.headline(found)["points"]) == 1


def test_a_table_tells_shares_speed_and_failures() -> None:
    found = [
        result("peer", "exact", 4.0, MOST_PSNR, 8e9),
        result("ours", "exact", 3.0, MOST_PSNR, 6e9),
        result("ours", "plans", 1.5, 30.0, 3e9),
        Result(Contestant("cache", "0.1", "peer", "wan_pipeline", "x"), error="ValueError: no"),
    ]
    lines = report.table(found, rate=1e10)
    assert lines[2]["times as fast"] == "2.67"
    assert lines[2]["as its own exact run"] == "2.00"
    assert lines[2]["of the ceiling"] == "20 %"
    assert (lines[2]["PSNR, worst prompt"], lines[2]["median"]) == ("30.0", "32.5")
    assert lines[3] == {"": "cache: 0.1", "seconds": "failed: ValueError: no"}
    assert json.loads(json.dumps(report.plain(found)))[3]["error"] == "ValueError: no"


def test_magcache_s_ratios_are_copied_from_what_it_prints() -> None:
    printed = "\n[MagCache] Calibration Complete. Copy these:\n[1.0, 0.5, 2e-05]\n\n[MagCache] ...\n[1.0, 9.0, 9.0]\n\n"
    assert calibrated(printed) == [1.0, 0.5, 2e-05]
    with pytest.raises(ValueError, match="printed no ratios"):
        calibrated("nothing")


def test_every_cache_s_knobs_are_those_of_this_diffusers() -> None:
    found = list(contestants.diffusers_caches(50, False, Scouted([1.0] * 50)))
    methods = {one.method for one in found}
    assert methods == {"first_block", "taylor", "mag", "sea"}
    for one in found:
        configured(job(one.method, 50, **one.knobs))
    assert len({one.name for one in found}) == len(found)
    assert {one.method for one in contestants.diffusers_caches(50, True, Scouted())} == methods - {"mag"}


def test_thresholds_are_sought_where_they_do_something() -> None:
    asked = []

    def calls(threshold: float) -> int:
        """All of 100 below 0.3, 20 above 0.6, a slope between."""
        asked.append(threshold)
        return round(min(100, max(20, 100 - 80 * (threshold - 0.3) / 0.3)))

    found = spread(calls)
    assert len(asked) == len(set(asked)) == 10
    assert sorted(found) == found
    computed = [calls(threshold) for threshold in found]
    assert computed[0] == 100
    assert computed[-1] == 20
    assert sum(20 < count < 100 for count in computed) >= 3
    assert spread(lambda threshold: 100) == [0.005, 2.0]  # inert at all: nothing to seek


def test_rules_are_plans_of_the_setting(tmp_path: Path) -> None:
    from sightline.video.plan import Plan

    found = contestants.rules(Setting(50), 4, tmp_path, False)
    assert len({one.name for one in found}) == len(found)
    for one in found:
        assert one.kind == "baseline"
        if one.method == "plan":
            assert Plan.load(one.knobs["path"]).steps == 50
        else:
            assert one.steps is not None
            assert one.steps < 50


def test_searched_plans_must_fit_the_generation(tmp_path: Path) -> None:
    plans = tmp_path / "plans"  # of a search's folder
    fixed_interval(Setting(50, weights="a", shift=3.0), 2).save(plans / "two.json")
    fixed_interval(Setting(50, weights="b", shift=3.0), 2).save(tmp_path / "best.json")
    (plans / "state.json").write_text("{}")
    (one,) = contestants.searched(tmp_path, Setting(50, weights="a", shift=3.0))
    assert (one.family, one.label, one.steps) == ("searched plans", "every 2 from 0", 50)
    with pytest.raises(SightlineError, match=r"two.json is for another generation: weights \(a, here b\)"):
        contestants.searched(tmp_path, Setting(50, weights="b", shift=3.0))
    (plans / "two.json").unlink()
    with pytest.raises(SightlineError, match="holds no plans"):
        contestants.searched(tmp_path, Setting(50))
    with pytest.raises(SightlineError, match="cannot read .*nowhere"):
        contestants.searched(tmp_path / "nowhere", Setting(50))


def test_attention_is_counted_on_cpus_too() -> None:
    import torch
    from caching.job import Answer

    class Engine:
        def run(self, job: Job) -> Answer:
            heads = torch.randn(1, 2, 64, 16)
            torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
            return Answer(1.0)

    counted = worker.answer(Engine(), Job(**{**job("exact").to_json(), "count": True}))
    assert counted.operations == 4 * 2 * 64 * 64 * 16
    assert worker.answer(Engine(), job("exact")).operations is None


def test_a_worker_that_does_not_start_or_ends_is_told_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(SightlineError, match="peer: cannot start /nowhere/python"):
        Worker("peer", "/nowhere/python", tmp_path, "float32", 1)
    with pytest.raises(SightlineError, match="peer does not start: ModuleNotFoundError: No module named"):
        Worker("peer", sys.executable, tmp_path, "float32", 1)


@pytest.fixture
def own_threads() -> Iterator[None]:
    """The benchmark sets this process's threads, and the number decides the last bits of later tests' sums."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("own_threads")
def test_contestants_are_compared_end_to_end(tmp_path: Path, capsys: Any) -> None:
    """A random model in few steps; cache-dit's Python is one without it, which leaves it out and is told."""
    model = make_wan_folder(tmp_path / "wan")
    write_json(model / "sightline.json", {"text_length": 16})
    arguments = ["--quick", "--model", str(model), "--steps", str(STEPS), "--size", "32x32", "--frames", "5"]
    arguments += ["--prompts", "1", "--threads", "1", "--cache-dit-python", "/nowhere/python"]
    families = ("fixed interval", "TaylorSeer, as it comes", "MagCache")
    arguments += [word for family in families for word in ("--family", family)]
    arguments += ["--json", str(tmp_path / "found.json"), "--plot", str(tmp_path / "plot.png")]
    video_cache.run(video_cache.parse(arguments))
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["exact_runs_agree_psnr"] > 60
    assert "cannot start /nowhere/python" in found["left_out"]["cache_dit"]
    assert found["left_out"]["searched plans"] == "no --plans"
    by_name = {f"{one['family']}: {one['label']}": one for one in found["results"]}
    assert not any(one["error"] for one in by_name.values())
    exact, ours = by_name["exact: diffusers"], by_name["exact: ours"]
    inert = by_name["TaylorSeer, as it comes: interval 5"]
    assert inert["operations"] == exact["operations"]  # it names no module of Wan
    assert inert["psnr_worst_prompt"] == MOST_PSNR
    # The first block's self-attention is shared between the branches; nothing else is saved.
    assert 0.9 * exact["operations"] < ours["operations"] < exact["operations"]
    assert exact["told"]["calls"] == ours["told"]["calls"] == 2 * STEPS
    (skipping,) = (one for one in by_name.values() if one["family"] == "fixed interval")
    assert skipping["operations"] < 0.8 * ours["operations"]
    assert skipping["told"]["calls"] < 2 * STEPS
    assert skipping["psnr_worst_prompt"] < 60
    assert {one["family"] for one in by_name.values()} == {"exact", *families}
    printed = capsys.readouterr().out
    assert "| exact: ours |" in printed
    assert "left out: cache_dit" in printed
    assert (tmp_path / "plot.png").stat().st_size > 5000
