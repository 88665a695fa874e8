"""`sightline train` as a user runs it: output, errors, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from drawn import write_data

from sightline.cli.app import main


class Shell:
    """Runs the command line in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: Any) -> tuple[int, str, str]:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(["train", *map(str, arguments)])
        out, err = self._capsys.readouterr()
        return int(end.value.code or 0), out, err


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture
def given(tiny_folder: Path, tmp_path: Path) -> list[str]:
    """A run on eight rows as key=value."""
    data = write_data(tmp_path / "data", 8)
    pairs = {"model": tiny_folder, "data": data, "output": tmp_path / "run", "device": "cpu", "dtype": "fp32"}
    return [f"{name}={value}" for name, value in pairs.items()] + ["max-steps=2", "tensorboard=false"]


def test_trains_and_says_where_the_result_is(shell: Shell, given: list[str], tmp_path: Path) -> None:
    code, out, err = shell(*given)
    assert code == 0
    assert re.search(r"^2 steps in \d+ s, [\d.]+ samples/s, loss \d+\.\d{4}$", out, re.MULTILINE)
    assert f"written to {tmp_path / 'run'}" in out
    assert "step 2/2  loss " in err
    assert (tmp_path / "run/adapter_model.safetensors").exists()
    code, again, err = shell(*given)
    assert (code, again) == (0, out)
    assert "finished already" in err


def test_result_as_json(shell: Shell, given: list[str], tmp_path: Path) -> None:
    code, out, _ = shell(*given, "validation_split=0.25", "--json")
    assert code == 0
    result = json.loads(out)
    assert result["steps"] == 2
    assert result["output"] == str(tmp_path / "run")
    assert result["eval_loss"] > 0
    assert result == json.loads((tmp_path / "run/train_result.json").read_text())


def test_file_with_overrides(shell: Shell, given: list[str], tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    pairs = dict(pair.split("=", 1) for pair in given)
    file.write_text(yaml.safe_dump({"model": pairs["model"], "data": pairs["data"], "output": "elsewhere"}))
    code, out, _ = shell(file, f"output={tmp_path / 'o'}", "lora.r=2", "learning_rate=1e-4", "--print-config")
    assert code == 0
    config = yaml.safe_load(out)
    assert (config["lora"]["r"], config["learning_rate"], config["output"]) == (2, 1e-4, str(tmp_path / "o"))
    assert not (tmp_path / "o").exists()


def test_printed_configuration_is_the_same_run(shell: Shell, given: list[str], tmp_path: Path) -> None:
    _, first, _ = shell(*given, "betas=[0.8, 0.9]", "lora.targets=[q_proj]", "--print-config")
    file = tmp_path / "printed.yaml"
    file.write_text(first)
    code, second, _ = shell(file, "--print-config")
    assert (code, second) == (0, first)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["learning_rat=1"], 2, "unknown field learning_rat (did you mean learning_rate?)"),
        (["batch_size=x"], 2, "batch_size: "),
        (["absent.yaml"], 2, "'absent.yaml' is not of the form key=value"),
        (["--no-such-option"], 2, "No such option: --no-such-option"),
        (["--preview", "-1"], 2, "--preview"),
        (["model=absent"], 1, "absent is not a folder; give a checkpoint folder"),
        (["data=absent.jsonl"], 1, "cannot read absent.jsonl"),
        (["device=tpu"], 2, "is not cpu, cuda, npu"),
        (["max_length=10"], 1, "8 of 8 rows are faulty, first "),
        (["lora.targets=nonsense"], 2, "lora.targets 'nonsense'"),
        (["validation_split=0.5", "max_samples=1"], 1, "at least two samples"),
    ],
)
def test_mistakes_end_in_one_line(
    shell: Shell, given: list[str], arguments: list[str], code: int, message: str
) -> None:
    got, _, err = shell(*given, *arguments)
    assert got == code
    last = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(last) == 1
    assert message in last[0]
    assert "Traceback" not in err
    assert "bug in Sightline" not in err


def test_nothing_given(shell: Shell) -> None:
    code, _, err = shell()
    assert code == 2
    assert "the field model is missing; the field data is missing; the field output is missing" in err
    code, _, err = shell("absent.yaml")
    assert code == 2
    assert "cannot read absent.yaml: No such file or directory" in err


def test_help_shows_an_example(shell: Shell) -> None:
    code, out, _ = shell("--help")
    assert code == 0
    assert "sightline train examples/lora.yaml" in out
    for option in ("--preview", "--print-config", "--json"):
        assert option in out


def test_preview_colours_what_is_learnt(given: list[str]) -> None:
    environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "300"}
    run = subprocess.run(
        [sys.executable, "-m", "sightline.cli.app", "train", *given, "--preview", "2"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    green = re.findall(r"\x1b\[1;32m(.*?)\x1b\[0m", run.stdout, re.DOTALL)
    plain = re.sub(r"\x1b\[[\d;]*m", "", run.stdout)
    assert len(green) == 2
    assert all(text.endswith("<|im_end|>") for text in green)
    assert green[1].startswith("a ")
    assert not any("user" in text for text in green)
    assert len(re.findall(r"\[\d+ vision tokens\]", plain)) == 3
    assert re.search(r"data\.jsonl:1: \d+ tokens, \d+ vision, \d+ supervised", plain)
    assert "data.jsonl:3" not in plain
    assert not Path(next(pair for pair in given if pair.startswith("output=")).partition("=")[2]).exists()
