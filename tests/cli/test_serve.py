"""The serve command as a process: ready line, signals, exit codes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from sightline.cli.app import main


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sightline.cli.app", "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NO_COLOR": "1"},
    )


@pytest.fixture
def server(tiny_folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = start("--model", str(tiny_folder), "--port", "0", "--dtype", "fp32", "--device", "cpu")
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"ready: model at (http://127\.0\.0\.1:\d+/v1)", line)
    assert found, line + (process.stderr.read() if process.stderr else "")
    yield process, found[1]
    if process.poll() is None:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ready_answer_and_a_clean_end(server: tuple[subprocess.Popen[str], str], number: int) -> None:
    process, url = server
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3}
    assert httpx.post(f"{url}/chat/completions", json=body, timeout=60).status_code == 200
    if number == signal.SIGTERM:
        # A stream that is running does not hold the server up.
        long = {**body, "max_tokens": 2000, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/chat/completions", json=long, timeout=60) as response:
            next(response.iter_text())
            process.send_signal(number)
            assert process.wait(30) == 0
    else:
        process.send_signal(number)
        assert process.wait(30) == 0
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code and the one line of error of a server that does not start."""
    with pytest.raises(SystemExit) as left:
        main(["serve", *arguments])
    errors = capsys.readouterr().err.strip()
    assert "Traceback" not in errors
    return int(left.value.code or 0), errors.splitlines()[-1]


def test_a_taken_port(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, error = fails(capsys, "--model", str(tiny_folder), "--port", str(port))
    assert code == 1
    assert f"port {port} on 127.0.0.1 is in use" in error
    assert "--port" in error


def test_wrong_arguments(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    free = ("--model", str(tiny_folder), "--port", "0")
    for arguments, code, words in (
        (("--model", str(tmp_path), "--port", "0"), 1, "config.json"),
        (("--model", str(tiny_folder), "--port", "70000"), 2, "--port"),
        ((*free, "--host", "not a host"), 2, "--host"),
        ((*free, "--max-model-len", "99999999"), 2, "max_model_len"),
        ((*free, "--dtype", "int3"), 2, "int3"),
        ((*free, "--adapter", str(tmp_path)), 1, "adapter_config.json"),
        ((*free, "--gpu-memory-utilization", "1.5"), 2, "gpu_memory_utilization must be"),
        ((*free, "--cpu-memory-share", "0"), 2, "cpu_memory_share must be"),
        ((*free, "--device-map", "balanced"), 2, "device_map 'balanced'"),
        ((*free, "--limit-mm-per-prompt", '{"audio": 4}'), 2, "known are image and video"),
    ):
        found, error = fails(capsys, *arguments)
        assert (found, words in error) == (code, True), error
