"""Measurements on disk: damaged and foreign files, folders that cannot be written, several processes at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sightline.hardware.operators import dense_attention
from sightline.hardware.operators.dense_attention import (
    Measurement,
    Problem,
    Trial,
    choice,
    measured,
    measurements,
    store,
)

CPU = torch.device("cpu")
PROBLEM = Problem(1, 2, 2, 12, 12, 16, "fp32")


def written(cache: Path) -> tuple[Path, dict[str, Any]]:
    """A cache with one measurement: its file and what is in it."""
    measured(PROBLEM, CPU, "cpu")
    (path,) = (cache / "attention").glob("*.json")
    return path, json.loads(path.read_text())


def test_the_file_says_where_it_is_from(cache: Path) -> None:
    path, value = written(cache)
    assert (value["format"], value["schema"]) == ("sightline-attention", 1)
    assert value["environment"]["torch"] == torch.__version__
    assert value["environment"]["threads"] == torch.get_num_threads()
    assert path.stat().st_mode & 0o044, "readable as other files are"
    (known,) = measurements(CPU)
    assert known == measured(PROBLEM, CPU, "cpu")
    assert known.problem == PROBLEM


def edited(value: dict[str, Any], *path: str | int, to: Any) -> dict[str, Any]:
    place: Any = value
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return value


TRIAL = ("measurements", PROBLEM.key(), "trials", 0)
DAMAGE = {
    "half a file": lambda value: json.dumps(value)[: len(json.dumps(value)) // 2],
    "nothing": lambda value: "",
    "bytes": lambda value: "\x00\x01",
    "a list": lambda value: "[1, 2]",
    "another format": lambda value: edited(value, "format", to="gemm"),
    "another schema": lambda value: edited(value, "schema", to=0),
    "another machine": lambda value: edited(value, "environment", "device", to="Ascend910B4"),
    "a field less": lambda value: edited(value, "measurements", PROBLEM.key(), to={"trials": []}),
    "a field more": lambda value: edited(value, *TRIAL, "colour", to="red"),
    "a time below 0": lambda value: edited(value, *TRIAL, "seconds", to=-1.0),
    "a time in words": lambda value: edited(value, *TRIAL, "seconds", to="1 s"),
    "a list of measurements": lambda value: edited(value, "measurements", to=[1]),
    "a kernel of yesterday": lambda value: edited(value, *TRIAL, "name", to="sdpa_of_old"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_cannot_be_used_is_measured_anew(
    damage: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, value = written(cache)
    text = DAMAGE[damage](value)
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    dense_attention.forget()
    before = path.read_text()
    assert measured(PROBLEM, CPU, "cpu").best() is not None
    assert path.read_text() != before
    assert [known.problem for known in measurements(CPU)] == [PROBLEM]
    if damage != "a kernel of yesterday":
        assert "attention is measured anew" in caplog.text


def test_other_versions_and_threads_have_files_of_their_own(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(cache)
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    dense_attention.forget()
    assert measurements(CPU) == []
    measured(PROBLEM, CPU, "cpu")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert measurements(CPU) == []
    measured(PROBLEM, CPU, "cpu")
    assert len(list((cache / "attention").glob("*.json"))) == 3


def test_measuring_again_replaces_what_is_known(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = measured(PROBLEM, CPU, "cpu")
    assert measured(PROBLEM, CPU, "cpu") is first
    again = measured(PROBLEM, CPU, "cpu", again=True)
    assert again is not first
    assert measurements(CPU) == [again]


def test_a_folder_that_cannot_be_written_costs_a_warning_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "file"))
    dense_attention.forget()
    first = measured(PROBLEM, CPU, "cpu")
    assert first.best() is not None
    assert "set SIGHTLINE_CACHE to a folder that can be written to" in caplog.text
    assert measured(PROBLEM, CPU, "cpu") is first, "remembered in the process"
    dense_attention.forget()


def save_several(numbers: list[int]) -> None:
    surroundings = store.environment(CPU, "cpu")
    for number in numbers:
        problem = Problem(1, 1, 1, number, 3, 16, "fp32")
        store.save(surroundings, Measurement(problem, (Trial("sdpa", "BNSD", True, 1.0, 0.0),), "today"))


# They begin to write when all of them are there.
WRITER = """
import sys
sys.path[:0] = {paths!r}
import test_store
print("ready", flush=True)
sys.stdin.read()
test_store.save_several({numbers})
"""


def test_processes_that_write_at_the_same_time_lose_nothing(cache: Path) -> None:
    writers = []
    for start in (1, 11, 21, 31):
        program = WRITER.format(paths=[str(Path(__file__).parent)], numbers=[*range(start, start + 10)])
        pipe = subprocess.PIPE
        writers.append(subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, text=True))
    for writer in writers:
        assert writer.stdout
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin
        writer.stdin.close()
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0, 0]
    assert sorted(known.problem.queries for known in measurements(CPU)) == list(range(1, 41))
    left = sorted(path.suffix for path in (cache / "attention").iterdir())
    assert left == [".json", ".lock"]


def test_saving_keeps_what_another_process_has_measured(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one writes between this one's look at the file and its own writing."""
    real = choice.measure
    other = Problem(1, 2, 2, 7, 7, 16, "fp32")

    def measure(problem: Problem, *rest: Any) -> Any:
        result = real(problem, *rest)
        if problem == PROBLEM:
            store.save(store.environment(CPU, "cpu"), real(other, *rest))
        return result

    monkeypatch.setattr(choice, "measure", measure)
    measured(PROBLEM, CPU, "cpu")
    assert {known.problem for known in measurements(CPU)} == {PROBLEM, other}
