"""The bench command: what it prints, writes and draws, and its exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import Scripted, as_json, plain

from sightline.cli.app import main

FEW = ("--random-input-len", "3", "--num-prompts", "3", "--warmup", "0")


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted(lambda body: plain(tokens=3, delay=0.002)) as running:
        yield running


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["bench", "serve", *arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return int(left.value.code or 0), captured.out, captured.err


def test_a_load_is_printed_and_written(
    server: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    file = tmp_path / "found.json"
    options = ("--port", str(server.port), *FEW, "--max-concurrency", "2", "--top-k", "5", "--ignore-eos")
    more = ("--extra-body", '{"min_tokens": 3}', "--header", "X-Team=blue", "--metric-percentiles", "50,90")
    code, out, _ = run(capsys, *options, *more, "--goodput", "ttft:9000 e2el:9000", "-o", str(file))
    assert code == 0
    for line in ("Serving Benchmark Result", "P90 E2EL (ms):", "Request goodput (req/s):"):
        assert line in out
    found = json.loads(file.read_text())
    assert (found["completed"], found["num_prompts"], found["backend"]) == (3, 3, "openai-chat")
    assert found["request_goodput"] == found["request_throughput"]
    assert "generated_texts" not in found
    body = server.bodies[-1]
    assert (body["top_k"], body["ignore_eos"], body["min_tokens"], body["temperature"]) == (5, True, 3, 0.0)
    assert "Authorization: Bearer secret" in server.heads[-1]
    assert "X-Team: blue" in server.heads[-1]


def test_json_and_details(server: Scripted, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--base-url", f"{server.url}/v1", *FEW, "--json", "--save-detailed")
    assert code == 0
    assert json.loads(out)["generated_texts"] == ["t0 t1 t2 "] * 3


@pytest.mark.parametrize(("option", "kind"), [("--sweep", "concurrency"), ("--sweep-rates", "rate")])
def test_a_sweep_is_drawn(
    server: Scripted, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, kind: str
) -> None:
    import PIL.Image

    drawn, file = tmp_path / "load.png", tmp_path / "found.json"
    paths = ("--plot", str(drawn), "-o", str(file))
    code, out, _ = run(capsys, "--port", str(server.port), *FEW, option, "20,40", *paths)
    assert code == 0
    assert re.search(r"^ +load +req/s .*\n +20 .*\n +40 ", out, re.M)
    loads = json.loads(file.read_text())["loads"]
    assert [(one["load"], one["load_kind"]) for one in loads] == [(20, kind), (40, kind)]
    with PIL.Image.open(drawn) as picture:
        assert picture.width > 1000


def test_failures_are_told_and_end_with_one(capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([plain(), *[as_json({"error": {"message": "full"}}, status=503)] * 3])
    with Scripted(lambda body: next(answers)) as server:
        code, out, _ = run(capsys, "--port", str(server.port), *FEW)
    assert code == 1
    assert "3 failed (status 503), such as: 503: full" in out


def test_nobody_there(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    code, out, error = run(capsys, "--port", str(port))
    assert (code, out) == (1, "")
    (line,) = error.strip().splitlines()
    assert f"cannot reach http://127.0.0.1:{port}: the connection was refused" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--plot", "x.png"), "give several loads with --sweep"),
        (("--sweep", "1", "--sweep-rates", "1"), "two sweeps"),
        (("--sweep", "1,x"), "--sweep is 'x'"),
        (("--request-rate", "fast"), "--request-rate is 'fast'"),
        (("--request-rate", "-1"), "--request-rate must be above 0"),
        (("--percentile-metrics", "ttft,foo"), "'foo'; known are ttft"),
        (("--goodput", "ttft"), "--goodput is 'ttft'"),
        (("--extra-body", "{"), "--extra-body is not JSON"),
        (("--extra-body", "[]"), "must be a JSON object"),
        (("--header", "x"), "--header is 'x'"),
        (("--base-url", "nowhere"), "--base-url is 'nowhere'"),
        (("--random-image-size", "big"), "--random-image-size is 'big'"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str) -> None:
    code, _, error = run(capsys, *arguments)
    assert (code, words in error) == (2, True), error


def test_ctrl_c_prints_what_there_is() -> None:
    with Scripted(lambda body: plain(tokens=2, delay=0.1)) as server:
        command = [sys.executable, "-m", "sightline.cli.app", "bench", "serve", "--port", str(server.port)]
        arguments = ["--max-concurrency", "1", "--num-prompts", "500", "--random-input-len", "2"]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(
            [*command, *arguments], env={**os.environ, "NO_COLOR": "1"}, **pipes
        ) as process:
            deadline = time.monotonic() + 60
            while len(server.bodies) < 5 and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            out, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Serving Benchmark Result" in out
    assert re.search(r"interrupted: 49\d requests without an answer", out)
    assert "Traceback" not in error
