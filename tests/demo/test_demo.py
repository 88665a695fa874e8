"""The whole journey with a tiny model: interrupted, resumed, finished, done again, changed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sightline.demo.journey import run_demo
from sightline.demo.report import answer_rows, render
from sightline.demo.run_folder import MARKER
from sightline.demo.settings import KINDS, Settings
from sightline.training.config import load_config

pytest.importorskip("easy_vqa", reason="the demo's data comes with the extra `demo`")
pytest.importorskip("openai", reason="the demo's client comes with the extra `demo`")

SECONDS, QUESTIONS = 6.0, 20
KEYS = {
    *("accuracy_before", "accuracy_after", "accuracy_by_kind", "train_seconds", "total_seconds"),
    *("samples_per_second", "peak_memory_bytes", "server_answers"),
}


def run(
    folder: Path, base: Path, seconds: float = SECONDS, **options: Any
) -> tuple[dict[str, Any], list[str]]:
    lines: list[str] = []
    report = run_demo(folder, Settings(seconds, QUESTIONS, base=base), say=lines.append, **options)
    return report, lines


@pytest.fixture(scope="module")
def interrupted(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """(folder, exit code, stderr) of a demo that got Ctrl-C once training had left a checkpoint."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    command = [sys.executable, "-m", "sightline.cli.app", "demo", "--output", str(folder)]
    command += ["--base", str(tiny_folder), "--train-seconds", str(SECONDS), "--questions", str(QUESTIONS)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    ) as process:
        deadline = time.monotonic() + 180
        while not list(folder.glob("training/checkpoints/*/sightline.json")):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                pytest.fail(f"no checkpoint: {process.communicate()}")
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    return folder, process.returncode, errors


@pytest.fixture(scope="module")
def finished(interrupted: tuple[Path, int, str], tiny_folder: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """(folder, report, lines) of the same demo, run again to its end."""
    report, lines = run(interrupted[0], tiny_folder)
    return interrupted[0], report, lines


def test_ctrl_c_ends_with_one_line_and_nothing_broken(interrupted: tuple[Path, int, str]) -> None:
    folder, code, errors = interrupted
    assert code == 130
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "interrupted"
    assert not (folder / "merged").exists()


def test_a_second_run_goes_on_from_the_checkpoint(finished: tuple[Path, dict[str, Any], list[str]]) -> None:
    _, report, lines = finished
    states = {step["name"]: step["state"] for step in report["steps"]}
    assert states == {
        **dict.fromkeys(("model", "data", "before"), "reused"),
        "train": "resumed",
        **dict.fromkeys(("merge", "after", "serve"), "new"),
    }
    assert [line[:3] for line in lines if line[:1] != " "] == [f"{n}/8" for n in range(1, 9)]
    assert "done by an earlier run" in lines[0]
    assert "with an earlier run" in lines[3]


def test_the_report_holds_what_was_measured(finished: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, report, _ = finished
    assert json.loads((folder / "report.json").read_text()) == report
    assert report.keys() >= KEYS
    assert list(report["accuracy_by_kind"]) == list(KINDS)
    kinds = report["accuracy_by_kind"].values()
    assert sum(kind["questions"] for kind in kinds) == report["questions"] == QUESTIONS
    for when in ("before", "after"):
        rows = [json.loads(line) for line in (folder / f"{when}.jsonl").read_text().splitlines()]
        right = sum(row["answer"].strip().lower() == row["reference"] for row in rows)
        assert sum(kind[f"right_{when}"] for kind in kinds) == right
        assert report[f"accuracy_{when}"] == pytest.approx(right / QUESTIONS)
    assert 0 < report["train_seconds"] < report["total_seconds"]
    assert report["samples_per_second"] > 0
    assert report["peak_memory_bytes"] > 10**8
    assert [answer["kind"] for answer in report["server_answers"]] == list(KINDS)


def test_the_server_was_asked_held_out_questions(finished: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, report, lines = finished
    rows = [json.loads(line) for line in (folder / "data" / "held-out.jsonl").read_text().splitlines()]
    asked = {(row["messages"][0]["content"], row["messages"][1]["content"], row["kind"]) for row in rows}
    for answer in report["server_answers"]:
        assert (f"<image>{answer['question']}", answer["expected"], answer["kind"]) in asked
        assert Path(answer["picture"]).is_file()
        assert answer["right"] == (answer["answer"].lower() == answer["expected"])
        assert any(answer["question"] in line and answer["answer"] in line for line in lines)


def test_training_never_sees_a_held_out_picture(finished: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, report, _ = finished
    shown: list[set[bytes]] = []
    for name in ("train", "held-out"):
        rows = [json.loads(line) for line in (folder / "data" / f"{name}.jsonl").read_text().splitlines()]
        shown.append({(folder / "data" / row["images"][0]).read_bytes() for row in rows})
        counts = report["data"]["train" if name == "train" else "held_out"]
        assert counts["rows"] == len(rows)
        assert {kind: sum(row["kind"] == kind for row in rows) for kind in KINDS} == {
            k: counts[k] for k in KINDS
        }
    assert shown[0] & shown[1] == set()
    train, held = report["data"]["train"], report["data"]["held_out"]
    assert max(train[kind] for kind in KINDS) <= min(train[kind] for kind in KINDS) + 3
    assert [held[kind] for kind in KINDS] == [15, 2, 3]


def test_the_training_can_be_run_again_by_its_file(
    finished: tuple[Path, dict[str, Any], list[str]],
) -> None:
    folder = finished[0]
    again = load_config(folder / "train.yaml", ["output=runs/mine", "lora.r=32"])
    recorded = load_config(folder / "training" / "train_config.yaml")
    changed = {name for name, value in again if value != getattr(recorded, name)}
    assert changed == {"output", "lora"}
    assert again.max_seconds == SECONDS


def test_the_page_says_what_came_pre_trained(finished: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, report, _ = finished
    assert "given with <code>--base</code>" in (folder / "report.html").read_text(encoding="utf-8")
    training = {"samples": 60000, "steps": 3750, "train_seconds": 5000.0}
    for known in (training, {}):
        pretrained = {"r": "4", "recipe": "0123456789abcdef" * 4, "training": json.dumps(known)}
        changed = {**report, "model": {**report["model"], "pretrained": pretrained, "download_seconds": 9.5}}
        page = render(changed, answer_rows(folder), folder, Settings(base=None))
        assert "SmolLM2-135M-Instruct" in page
        assert "took another 9.5" in page
        assert ("60,000" in page) == ("samples" in known)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def test_the_page_is_self_contained(finished: tuple[Path, dict[str, Any], list[str]]) -> None:
    text = (finished[0] / "report.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in page.elements}
    assert "url(" not in text
    assert "@import" not in text
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(pictures) > 3
    for picture in pictures:
        assert (picture["src"] or "").startswith("data:image/png;base64,")
        assert picture["alt"]
    for tag, attributes in page.elements:
        assert "src" not in attributes or tag == "img"
        assert "href" not in attributes or tag == "a"
        assert "srcset" not in attributes


def test_only_finished_steps_are_left_out(
    finished: tuple[Path, dict[str, Any], list[str]], tiny_folder: Path
) -> None:
    folder, before, _ = finished
    weights = (folder / "merged" / "model.safetensors").stat().st_mtime_ns
    report, _ = run(folder, tiny_folder)
    assert {step["state"] for step in report["steps"]} == {"reused"}
    assert (folder / "merged" / "model.safetensors").stat().st_mtime_ns == weights
    for name in KEYS - {"total_seconds"}:
        assert report[name] == before[name]
    # Another training time: what comes before it stands, what follows is done again.
    (folder / "notes.txt").write_text("the user's own")
    report, _ = run(folder, tiny_folder, seconds=1.0)
    states = {step["name"]: step["state"] for step in report["steps"]}
    assert states == {
        **dict.fromkeys(("model", "data", "before"), "reused"),
        **dict.fromkeys(("train", "merge", "after", "serve"), "new"),
    }
    assert (folder / "merged" / "model.safetensors").stat().st_mtime_ns != weights
    assert (folder / "notes.txt").exists()
    assert (folder / MARKER).exists()
