"""Whole searches on a model that is a formula: the goal, the records, interruption, refusals."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from pretended_search import CALL, REST, Killed, PretendedRunner

from sightline.errors import SightlineError, UsageError
from sightline.video.plan import Plan
from sightline.video.search.goal import Goal, Trial
from sightline.video.search.levels import ladder
from sightline.video.search.measure import Measure, Subject
from sightline.video.search.race import Entry, _better
from sightline.video.search.report import conclusion, table, to_json, write_report
from sightline.video.search.search import Found, Task, calls, identity, search
from sightline.video.search.state import State
from sightline.video.setting import Setting

PROMPTS = ["a one moving", "a two moving up"]


def task(budget: str | None = "2x", min_psnr: float | None = None, **changed: int) -> Task:
    return Task.of(Goal.read(budget, min_psnr), PROMPTS, [0, 1], **({"holdout": 1, "rounds": 1} | changed))


def run(folder: Path, given: Task, runner: PretendedRunner | None = None) -> Found:
    runner = runner or PretendedRunner()
    return search(given, runner, State(folder, identity(given, runner)))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search") / "found"


@pytest.fixture(scope="module")
def found(kept: Path) -> Found:
    return run(kept, task())


def test_the_chosen_plan_reaches_the_goal_and_beats_every_baseline_as_fast(found: Found) -> None:
    chosen = found.chosen.result()
    assert found.reached
    assert chosen.speed >= 2
    rivals = [entry.result() for entry in found.entries if entry.baseline]
    assert any(rival.speed >= 2 for rival in rivals)
    assert all(chosen.psnr > rival.psnr + 3 for rival in rivals if rival.speed >= 2)


def test_baselines_run_on_every_prompt_and_each_kind_is_there(found: Found) -> None:
    rivals = [entry for entry in found.entries if entry.baseline]
    assert {entry.family for entry in rivals} == {"fewer steps", "fixed interval", "uncond only"}
    assert all(set(entry.trials) == set(found.task.subjects) for entry in rivals)


def test_what_was_held_out_took_no_part(found: Found) -> None:
    assert found.holdout is not None
    assert found.holdout.trials == 1
    assert len(found.task.subjects) == 3
    for entry in found.entries:
        assert not set(entry.trials) & set(found.task.holdout)


def test_the_front_has_nothing_that_is_beaten(found: Found) -> None:
    results = [entry.result() for entry in found.front]
    assert len(results) > 2
    for one, other in itertools.pairwise(results):
        assert one.seconds < other.seconds
        assert one.psnr < other.psnr


def test_half_of_the_candidates_leave_after_each_rung(found: Found) -> None:
    raced = [len(entry.trials) for entry in found.entries if not entry.baseline]
    assert raced.count(1) >= raced.count(2) > 0
    assert raced.count(3) < len(raced) / 2


def test_least_psnr_gives_the_fastest_that_keeps_it(tmp_path: Path) -> None:
    found = run(tmp_path / "found", task(None, 30.0, holdout=2, rounds=0))
    assert found.reached
    assert found.chosen.result().psnr >= 30
    usable = [entry for entry in found.entries if len(entry.trials) == 2]
    fast = [entry for entry in usable if entry.result().psnr >= 30]
    assert found.chosen.result().speed == max(entry.result().speed for entry in fast)


def test_a_goal_beyond_reach_is_told_with_the_nearest(tmp_path: Path) -> None:
    found = run(tmp_path / "found", task("90x", holdout=3, rounds=0))
    assert not found.reached
    assert conclusion(found).startswith("no plan is at least 90 times as fast; the nearest is ")
    assert (tmp_path / "found" / "state").is_dir()


def test_killed_anywhere_it_goes_on_to_the_same_result(found: Found, tmp_path: Path) -> None:
    chance, lives = random.Random(1), 0
    while True:
        lives += 1
        runner = PretendedRunner(dies=chance.randrange(1, 150))
        try:
            again = run(tmp_path / "found", task(), runner)
            break
        except Killed:
            # What a write that was cut off leaves.
            (tmp_path / "found" / "state" / f".run-{lives}.json.tmp").write_text("{")
    assert lives > 1
    assert to_json(again) == to_json(found)
    assert not list((tmp_path / "found" / "state").glob(".*")) or lives == 1


def test_a_search_that_is_done_generates_nothing_again(kept: Path, found: Found) -> None:
    runner = PretendedRunner(dies=0)
    assert to_json(run(kept, task(), runner)) == to_json(found)


def test_another_search_in_the_folder_is_refused_with_what_differs(tmp_path: Path) -> None:
    given = task()
    State(tmp_path / "found", identity(given, PretendedRunner()))
    with pytest.raises(
        SightlineError, match=r"rounds \(1, here 3\).*setting.steps \(12, here 10\).*another output folder"
    ):
        run(tmp_path / "found", task(rounds=3), PretendedRunner(steps=10))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("")
    with pytest.raises(SightlineError, match="already exists and holds no search"):
        run(tmp_path / "other", given)


def test_a_machine_that_slows_down_does_not_decide(tmp_path: Path) -> None:
    class Slower(PretendedRunner):
        def run(self, plan, subject):  # type: ignore[no-untyped-def]
            self.tempo *= 1.01
            return super().run(plan, subject)

    chosen = run(tmp_path / "found", task(holdout=2, rounds=0), Slower()).chosen
    count, rest = sum(calls(chosen).values()), REST * chosen.plan.steps
    exact = 24 * CALL + REST * 12
    assert chosen.result().speed == pytest.approx(exact / (count * CALL + rest), rel=0.05)


def test_plans_take_fewer_steps_where_those_are_nearer(found: Found) -> None:
    """On a velocity that is nearly straight for `uncond`, fewer steps without it are searched as well."""
    ran = [entry for entry in found.entries if entry.trials]
    mixed = [entry for entry in ran if entry.plan.steps < 12 and entry.plan.actions]
    assert mixed
    for entry in mixed:
        assert entry.name.endswith(f"of {entry.plan.steps}")
        assert entry.draft is not None
        assert entry.draft.steps == entry.plan.steps
        assert sum(calls(entry).values()) < 2 * entry.plan.steps
    assert {entry.plan.steps for entry in ran if not entry.plan.actions} >= set(ladder(12))


def test_the_front_reaches_over_the_speeds_whatever_was_asked(found: Found) -> None:
    speeds = [entry.result().speed for entry in found.front]
    assert min(speeds) < 1.8
    assert max(speeds) > 2.4


def test_who_leaves_is_decided_by_measured_psnr() -> None:
    def entry(name: str, seconds: float, psnr: float, error: float) -> Entry:
        fidelity = dict.fromkeys(("ssim", "ssim_worst", "haarpsi", "haarpsi_worst", "psnr_worst"), 1.0)
        fidelity |= {"psnr": psnr, "temporal_error": 0.0, "temporal_error_worst": 0.0, "flicker": 1.0}
        trial = Trial(seconds, 10.0, seconds, 10.0, error, fidelity)
        timings = {name: [trial]}
        made = Entry(Plan(Setting(steps=12), name=name), "searched plan", timings)
        made.calls = name  # type: ignore[misc]
        made.trials[Subject("a", 0)] = trial
        return made

    # Both are as fast; the nearer latents give the worse picture.
    pairs = [
        (entry(f"good {n}", n, 30 + 4 * n, 0.2), entry(f"bad {n}", n, 20 + 4 * n, 0.1))
        for n in (5.0, 4.0, 2.5, 7.0)
    ]
    entries = [each for pair in pairs for each in pair]
    kept = [each.name for each in _better(entries, Goal(budget=2.0))]
    assert all(f"good {n}" in kept for n in (5.0, 4.0, 2.5, 7.0))
    assert len(kept) < len(entries)


def test_a_report_has_plans_that_load_and_all_figures(found: Found, tmp_path: Path) -> None:
    runner = PretendedRunner()
    measure = Measure(runner, State(tmp_path / "found", identity(found.task, runner)))
    write_report(found, tmp_path / "found", measure, 8)
    best = Plan.load(tmp_path / "found" / "best.json")
    assert best.actions == found.chosen.plan.actions
    assert best.evidence.seconds == pytest.approx(found.chosen.result().seconds)
    assert best.evidence.fidelity["psnr"] == pytest.approx(found.chosen.result().psnr)
    assert set(best.evidence.prompts) <= set(PROMPTS)
    plans = list((tmp_path / "found" / "plans").glob("*.json"))
    assert len(plans) >= 2
    for path in plans:
        plan = Plan.load(path)
        assert replace(plan.setting, steps=12) == runner.setting()
        assert plan.steps <= 12
    data = json.loads((tmp_path / "found" / "search.json").read_text())
    assert data["reached"] is True
    assert {"name", "family", "calls", "result", "trials"} <= data["candidates"][0].keys()
    assert (tmp_path / "found" / "front.png").read_bytes()[:4] == b"\x89PNG"
    assert PROMPTS[0] in (tmp_path / "found" / "report.html").read_text()
    lines = table(found)
    assert sum(line.startswith(">") for line in lines) == 1
    assert "held out" in lines[-1]


@pytest.mark.parametrize(
    ("budget", "min_psnr", "message"),
    [
        (None, None, "give either --budget"),
        ("2x", 30.0, "give either --budget"),
        ("1x", None, "above 1x"),
        ("twice", None, "'twice'"),
        ("nanx", None, "above 1x"),
        (None, 0.0, "between 0 and 100"),
    ],
)
def test_goals_that_mean_nothing_are_refused(
    budget: str | None, min_psnr: float | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Goal.read(budget, min_psnr)


def test_tasks_that_mean_nothing_are_refused() -> None:
    goal = Goal(2.0)
    with pytest.raises(UsageError, match="at most 3, not 6"):
        task(holdout=6)
    with pytest.raises(UsageError, match="given twice"):
        Task(goal, (Subject("a", 0),), (Subject("a", 0),))
    with pytest.raises(UsageError, match="no prompt is left"):
        Task(goal, ())


def test_too_few_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 4 steps to leave some out, not 3"):
        run(tmp_path / "found", task(), PretendedRunner(steps=3))
