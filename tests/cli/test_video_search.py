"""`sightline video search`: from a file of prompts to a plan that `generate` takes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from wan_folder import make_wan_folder

from sightline.cli import app

SETTINGS = [
    "--size",
    "32x32",
    "--frame-num",
    "5",
    "--sample-steps",
    "6",
    "--device",
    "cpu",
    "--dtype",
    "fp32",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    make_wan_folder(folder / "wan", layers=2)
    (folder / "prompts.txt").write_text("a three moving left\n\n# a comment\na five moving up\n")
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        app.main(["video", *map(str, arguments)])
    said = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, said.out, " ".join(said.err.split())


def search(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: Any) -> tuple[int, str, str]:
    return run(
        capsys,
        "search",
        "--model",
        folder / "wan",
        "--prompts",
        folder / "prompts.txt",
        *SETTINGS,
        *arguments,
    )


def test_a_search_ends_in_a_plan_that_generate_takes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # So low that the clock of a busy machine does not decide.
    options = ["--min-psnr", 12, "--rounds", 1, "-o", folder / "found"]
    code, out, err = search(capsys, folder, *options)
    assert code == 0, err
    assert "PSNR worst" in out
    assert "times as fast" in out
    assert "a generation takes" in err
    data = json.loads((folder / "found" / "search.json").read_text())
    assert data["subjects"] == [
        {"prompt": "a three moving left", "seed": 0},
        {"prompt": "a five moving up", "seed": 0},
    ]
    for name in ("best.json", "front.png", "report.html", "plans"):
        assert (folder / "found" / name).exists()
    code, out, err = search(capsys, folder, *options, "--json")
    assert code == 0, err
    assert json.loads(out) == data
    given = [
        "--model",
        folder / "wan",
        *(word for word in SETTINGS if word not in ("--sample-steps", "6")),  # the plan's are taken
        "--prompt",
        "a one",
        "--plan",
        folder / "found" / "best.json",
    ]
    code, out, err = run(capsys, "generate", *given, "-o", folder / "one.mp4")
    assert code == 0, err
    code, out, err = search(capsys, folder, *options[:-2], "--seeds", "0,1", "-o", folder / "found")
    assert code == 1
    assert "holds a search with other settings: subjects" in err
    code, out, err = search(capsys, folder, *options, "--guidance", 2)
    assert code == 1
    assert "holds a search with other settings: setting.guidance (" in err


def test_what_cannot_be_reached_is_told_and_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "one.txt").write_text("a one\n")
    given = ["--model", folder / "wan", "--prompts", folder / "one.txt", *SETTINGS]
    code, _out, err = run(capsys, "search", *given, "--budget", "99x", "--rounds", 0, "-o", folder / "far")
    assert code == 1
    assert "no plan is at least 99 times as fast; the nearest is" in err
    assert (folder / "far" / "best.json").exists()


def test_ctrl_c_says_how_to_go_on(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sightline.video.search.generations import PipelineRunner

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(PipelineRunner, "run", stop)
    monkeypatch.setattr("sys.argv", ["sightline", "video", "search", "--budget", "2x"])
    code, _, err = search(capsys, folder, "--budget", "2x", "-o", folder / "stopped")
    assert code == 130
    assert "what was measured is kept in" in err
    assert "to go on: sightline video search --budget 2x" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --budget (2.0x"),
        (["--budget", "2x", "--min-psnr", "28"], "give either --budget"),
        (["--budget", "fast"], "--budget must be a speed-up as 2.0x, not 'fast'"),
        (["--budget", "2x", "--seeds", "0,0"], "each once"),
        (["--budget", "2x", "--seeds", "a"], "whole numbers with commas between"),
        (["--budget", "2x", "--holdout", "2"], "at most 1, not 2"),
    ],
)
def test_wrong_usage_is_refused(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = search(capsys, folder, *arguments, "-o", folder / "none")
    assert code == 2
    assert message in err
    assert not (folder / "none").exists()


def test_several_processes_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name, value in (
        ("RANK", "0"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "29500"),
        ("LOCAL_RANK", "0"),
    ):
        monkeypatch.setenv(name, value)
    code, _, err = search(capsys, folder, "--budget", "2x", "-o", folder / "none")
    assert code == 2
    assert "a search runs in one process" in err


def test_prompts_with_settings_of_their_own_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "rows.jsonl").write_text('{"prompt": "a one", "seed": 3}\n')
    code, _, err = run(
        capsys, "search", "--prompts", folder / "rows.jsonl", "--budget", "2x", "-o", folder / "none"
    )
    assert code == 2
    assert "line 1 of" in err
    assert "sets seed; a plan is for one setting" in err
