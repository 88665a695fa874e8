"""The root command: what it lists, how it fails, and that it stays light. Run as a user runs it."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

import sightline
from sightline.cli import app
from sightline.errors import SightlineError, UsageError

Install = Callable[[Callable[..., None]], None]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sightline.cli.app", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **environment},
        timeout=120,
    )


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a function in the place of the `infer` command."""

    def put(command: Callable[..., None]) -> None:
        module = types.ModuleType("sightline.cli.infer")
        module.command = command  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "sightline.cli.infer", module)
        monkeypatch.setattr(app.importlib.util, "find_spec", lambda name: module)

    return put


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        app.main(list(arguments))
    return int(left.value.code or 0)


def has_module(name: str) -> bool:
    return importlib.util.find_spec(f"sightline.cli.{name}") is not None


def test_help_lists_every_command_that_exists_with_its_summary() -> None:
    result = run("--help")
    assert result.returncode == 0
    assert result.stderr == ""
    for name, entry in app.ENTRIES.items():
        exists = has_module(name)
        assert (entry.summary in result.stdout) == exists


def test_the_package_runs_as_a_module() -> None:
    result = subprocess.run([sys.executable, "-m", "sightline", "--version"], capture_output=True, text=True)
    assert result.stdout == f"sightline {sightline.__version__}\n"


def test_no_arguments_is_a_question_for_help() -> None:
    result = run()
    assert result.returncode == 0
    assert "Usage: sightline" in result.stdout


def test_version() -> None:
    assert run("--version").stdout == f"sightline {sightline.__version__}\n"


def test_help_imports_no_heavy_library() -> None:
    code = (
        "import sys\nfrom sightline.cli import app\n"
        "try:\n    app.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "bad = {'torch', 'transformers', 'PIL', 'av', 'fastapi', 'peft'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", sorted(app.ENTRIES))
def test_each_command_has_help_with_an_example(name: str) -> None:
    if not has_module(name):
        pytest.skip(f"the command {name} does not exist yet")
    result = run(name, "--help")
    assert result.returncode == 0, result.stderr
    assert f"sightline {name} " in result.stdout.replace("Usage: sightline", "")


@pytest.mark.parametrize("arguments", [["no-such-command"], ["--no-such-option"]])
def test_wrong_usage_is_one_line_and_exit_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: No such ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "code"), [(SightlineError("rows.jsonl:3: no\nimage"), 1), (UsageError("no"), 2)]
)
def test_our_errors_become_one_line(
    install: Install, capsys: pytest.CaptureFixture[str], error: SightlineError, code: int
) -> None:
    def fail() -> None:
        raise error

    install(fail)
    assert call("infer") == code
    captured = capsys.readouterr()
    assert captured.err == f"error: {' '.join(str(error).split())}\n"
    assert captured.out == ""


def test_a_list_below_an_error_keeps_its_lines(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise SightlineError("2 rows are\nfaulty\n  a.jsonl:1: no image\n  a.jsonl:7: no answer")

    install(fail)
    assert call("infer") == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: 2 rows are faulty",
        "  a.jsonl:1: no image",
        "  a.jsonl:7: no answer",
    ]


@pytest.mark.parametrize("arguments", [["--debug", "infer"], ["infer", "--debug"]])
def test_debug_shows_the_traceback(
    install: Install, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    def fail() -> None:
        raise SightlineError("no image")

    install(fail)
    assert call(*arguments) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("error: no image\n")


def test_debug_can_come_from_the_environment(
    install: Install, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise SightlineError("no image")

    install(fail)
    monkeypatch.setenv("SIGHTLINE_DEBUG", "1")
    call("infer")
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_is_called_a_bug(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise KeyError("pixel_values")

    install(fail)
    assert call("infer") == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "KeyError: 'pixel_values'" in err
    assert "bug in Sightline" in err
    assert "--debug" in err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied", "weights"), "weights: Permission denied"),
        (MemoryError(), "out of memory"),
        (RuntimeError("NPU out of memory. Tried to allocate 2.00 GiB"), "out of memory; lower"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory; lower"),
        (
            Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
            "disk is full",
        ),
        (OSError(28, "No space left on device", "weights"), "disk is full"),
        (ModuleNotFoundError("No module", name="openai.types"), 'pip install "sightline[demo]"'),
    ],
)
def test_what_the_machine_lacks_is_no_bug(
    install: Install, capsys: pytest.CaptureFixture[str], error: Exception, words: str
) -> None:
    def fail() -> None:
        raise error

    install(fail)
    assert call("infer") == 1
    err = capsys.readouterr().err
    assert words in err
    assert "bug in Sightline" not in err


def test_a_missing_library_of_a_command_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'easy_vqa'", name="easy_vqa")

    monkeypatch.setattr(app.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(app.importlib, "import_module", missing)
    assert call("demo") == 1
    assert "easy_vqa is not installed" in capsys.readouterr().err


def test_options_may_be_spelt_with_underscores(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    def show(max_batch_size: int = 1, prompt: str = "") -> None:
        print(max_batch_size, prompt)

    install(show)
    assert call("infer", "--max_batch_size", "3", "--prompt=a_b") == 0
    assert capsys.readouterr().out == "3 a_b\n"


def test_a_wrong_value_is_wrong_usage(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    def show(port: int) -> None: ...

    install(show)
    assert call("infer", "eighty") == 2
    err = capsys.readouterr().err
    assert "port" in err.lower()
    assert "see `sightline infer --help`" in err
    assert len(err.splitlines()) == 1


def test_brackets_in_help_are_kept(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    def show(model: str = typer.Option(..., help="a folder [of a model]")) -> None:
        """Do it: sightline infer --model M [key=value ...]"""

    install(show)
    assert call("infer", "--help") == 0
    out = capsys.readouterr().out
    assert "[key=value ...]" in out
    assert "[of a model]" in out
    assert "[required]" in out


def test_take_switches_leaves_values_alone() -> None:
    given = [
        "data",
        "--media_root=a_b",
        "x_y",
        "--debug",
        "--two words_here",
        "--",
        "--not_an_option",
        "--debug",
    ]
    kept, switches = app.take_switches(given)
    assert kept == ["data", "--media-root=a_b", "x_y", "--two words_here", "--", "--not_an_option", "--debug"]
    assert switches == {"--debug"}


def test_interrupt_is_one_line_and_130(tmp_path: Path) -> None:
    code = (
        "import sys, time, types\nfrom sightline.cli import app\n"
        "module = types.ModuleType('sightline.cli.infer')\n"
        "def command():\n    print('started', flush=True)\n    time.sleep(60)\n"
        "module.command = command\nsys.modules['sightline.cli.infer'] = module\n"
        "app.importlib.util.find_spec = lambda name: module\napp.main(['infer'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "interrupted\n"
        assert process.wait(timeout=30) == 130


def test_a_reader_that_leaves_is_no_error() -> None:
    code = (
        "import sys, types\nfrom sightline.cli import app\n"
        "module = types.ModuleType('sightline.cli.infer')\n"
        "def command():\n    for _ in range(100000):\n        print('a line of output')\n"
        "module.command = command\nsys.modules['sightline.cli.infer'] = module\n"
        "app.importlib.util.find_spec = lambda name: module\napp.main(['infer'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
