"""Stamps of steps: what is done again, what goes on, what is never touched."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sightline.demo.run_folder import MARKER, RunFolder, opened
from sightline.errors import SightlineError, UsageError

Action = Callable[[], dict[str, Any]]


def writing(run: RunFolder, name: str, text: str = "done") -> Action:
    def action() -> dict[str, Any]:
        path = run.path / name
        earlier = path.read_text() if path.exists() else ""
        path.write_text(earlier + text)
        return {"text": earlier + text}

    return action


def two_steps(folder: Path, first: Any = 1, second: Any = 2) -> list[str]:
    with opened(folder) as run:
        run.step("model", {"a": first}, writing(run, "before.jsonl"), outputs=["before.jsonl"])
        run.step(
            "train", {"b": second}, writing(run, "after.jsonl"), after=["model"], outputs=["after.jsonl"]
        )
        return [done.state for done in run.done]


def test_a_step_is_done_once_until_its_settings_its_parent_or_its_outputs_change(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert two_steps(folder) == ["new", "new"]
    assert two_steps(folder) == ["reused", "reused"]
    assert two_steps(folder, second=3) == ["reused", "new"]
    assert (folder / "after.jsonl").read_text() == "done"
    assert two_steps(folder, first=9, second=3) == ["new", "new"]
    (folder / "before.jsonl").unlink()
    assert two_steps(folder, first=9, second=3) == ["new", "new"]
    (folder / "after.jsonl").unlink()
    assert two_steps(folder, first=9, second=3) == ["reused", "new"]


@pytest.mark.parametrize(("resumable", "expected"), [(True, "half done"), (False, "done")])
def test_an_interrupted_step_goes_on_only_if_it_can(tmp_path: Path, resumable: bool, expected: str) -> None:
    def interrupted() -> dict[str, Any]:
        (tmp_path / "run" / "before.jsonl").write_text("half ")
        raise KeyboardInterrupt

    settings = {"a": 1}
    with pytest.raises(KeyboardInterrupt), opened(tmp_path / "run") as run:
        run.step("before", settings, interrupted, outputs=["before.jsonl"], resumable=resumable)
    with opened(tmp_path / "run") as run:
        action = writing(run, "before.jsonl")
        done = run.step("before", settings, action, outputs=["before.jsonl"], resumable=resumable)
    assert done.result == {"text": expected}


def test_a_damaged_stamp_means_the_step_is_not_done(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    two_steps(folder)
    (folder / "steps" / "model.json").write_text('{"key": ')
    assert two_steps(folder) == ["new", "new"]


def test_foreign_folders_are_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for fresh in (False, True):
        with pytest.raises(UsageError, match="not the folder of a demo run"), opened(tmp_path, fresh=fresh):
            pass
    with pytest.raises(UsageError, match="is a file"), opened(tmp_path / "thesis.txt"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_fresh_removes_what_a_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    two_steps(tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    (tmp_path / "run" / ".merged.abc123").mkdir()
    with opened(tmp_path / "run", fresh=True):
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [MARKER, "notes.txt"]


def test_one_run_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom sightline.demo.run_folder import opened\n"
        "with opened(Path(sys.argv[1])):\n    pass"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with opened(tmp_path):
        with pytest.raises(subprocess.CalledProcessError) as failure:
            subprocess.run(command, check=True, capture_output=True, text=True)
        assert "another sightline demo is running" in failure.value.stderr
    subprocess.run(command, check=True)


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SightlineError, match="cannot make the folder"), opened(tmp_path / "file" / "run"):
        pass
