"""The serve command as a process: ready line, signals, exit codes, configurations."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from free_ports import free_ports

from sightline.cli.app import main
from sightline.cli.serve import command
from sightline.server.settings import all_options, other_names

MISSION = Path(__file__).parents[1] / "server" / "config" / "mission.json"
SMALL = ("--dtype", "fp32", "--device", "cpu")
LONG = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1900, "ignore_eos": True}


@contextmanager
def started(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "sightline.cli.app", "serve", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NO_COLOR": "1", **environment},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ready(process: subprocess.Popen[str]) -> str:
    """The API's root, once it is ready."""
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"ready: \S+ at (http://127\.0\.0\.1:\d+)/v1", line)
    assert found, line + (process.stderr.read() if process.stderr else "")
    return found[1]


def errors_of(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    return process.stderr.read()


def read_beside(url: str, tokens: int, texts: list[str]) -> threading.Thread:
    first = threading.Event()

    def read() -> None:
        options = {"json": {**LONG, "max_tokens": tokens, "stream": True}, "timeout": 60}
        with (
            suppress(httpx.TransportError),
            httpx.stream("POST", f"{url}/v1/chat/completions", **options) as answer,
        ):
            pieces = []
            for piece in answer.iter_text():
                first.set()
                pieces.append(piece)
            texts.append("".join(pieces))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert first.wait(30)
    return thread


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_sigterm_lets_running_requests_end(tiny_folder: Path) -> None:
    with started("--model", str(tiny_folder), "--port", "0", *SMALL, "--log-level", "debug") as process:
        url = ready(process)
        texts: list[str] = []
        threads = [read_beside(url, tokens, texts) for tokens in (300, 301, 302)]
        process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        assert process.wait(30) == 0
        assert time.monotonic() - begun < 25
        for thread in threads:
            thread.join(10)
        errors = errors_of(process)
    assert len(texts) == 3
    for text in texts:
        assert '"finish_reason":"length"' in text.replace(" ", "")
        assert text.endswith("data: [DONE]\n\n")
    assert "Traceback" not in errors
    assert (
        len(re.findall(r"POST /v1/chat/completions 200 \d+ms in=\d+ out=30[012] finish=length", errors)) == 3
    )


def test_a_second_signal_ends_at_once(tiny_folder: Path) -> None:
    with started("--model", str(tiny_folder), "--port", "0", *SMALL) as process:
        url = ready(process)
        texts: list[str] = []
        read_beside(url, 1900, texts)
        process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 10
        while httpx.get(f"{url}/health").status_code != 503:  # the port stays open to say so
            assert time.monotonic() < until
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert time.monotonic() - begun < 3


def test_an_interrupt_while_the_model_is_loaded(tiny_folder: Path) -> None:
    (port,) = free_ports(1)
    with started("--model", str(tiny_folder), "--port", str(port), *SMALL) as process:
        until = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/v2/health/live", timeout=5)
                break
            except httpx.TransportError:
                assert time.monotonic() < until
                time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0
        assert "Traceback" not in errors_of(process)


def test_the_missions_configuration_serves_on_three_ports(tiny_folder: Path, tmp_path: Path) -> None:
    """As it is in the guide, but for the weights' place and the ports."""
    numbers = free_ports(3)
    text = MISSION.read_text().replace("/data/datasets/Qwen2-VL-7B-Instruct", str(tiny_folder))
    for was, number in zip((1040, 1041, 1042), numbers, strict=True):
        text = text.replace(f": {was},", f": {number},")
    config = tmp_path / "config.json"
    config.write_text(text)
    api, management, metrics = (f"http://127.0.0.1:{number}" for number in numbers)
    # The daemon's own way to its configuration.
    with started(*SMALL, MIES_CONFIG_JSON_PATH=str(config)) as process:
        assert ready(process) == api
        assert httpx.get(f"{management}/health").status_code == 200
        assert "# HELP" in httpx.get(f"{metrics}/metrics").text
        body = {"model": "qwen2_vl", "messages": LONG["messages"], "max_tokens": 3, "do_sample": False}
        assert httpx.post(f"{api}/v1/chat/completions", json=body, timeout=60).status_code == 200
        answer = httpx.post(f"{api}/generate", json={"prompt": "a", "max_tokens": 3}, timeout=60)
        assert answer.json()["text"][0].startswith("a ")
        idle = _processor_seconds(process.pid)
        time.sleep(2)
        assert _processor_seconds(process.pid) - idle < 0.1
        assert httpx.get(f"{management}/stopService").status_code == 200
        assert process.wait(30) == 0
        errors = errors_of(process)
    assert errors.count("these fields change nothing here") == 1
    assert "Traceback" not in errors


def _processor_seconds(pid: int) -> float:
    import psutil

    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


@pytest.fixture(autouse=True)
def own_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets up its process's log for good, and this process is not its own."""
    monkeypatch.setattr("sightline.server.logs.set_up_logs", lambda settings: None)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code and the one line of error of a server that does not start."""
    with pytest.raises(SystemExit) as left:
        main(["serve", *arguments])
    errors = capsys.readouterr().err.strip()
    assert "Traceback" not in errors
    return int(left.value.code or 0), errors.splitlines()[-1]


@pytest.mark.parametrize("option", ["--port", "--management-port", "--metrics-port"])
def test_a_taken_port(tiny_folder: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        first = () if option == "--port" else ("--port", "0")
        code, error = fails(capsys, "--model", str(tiny_folder), *first, option, str(port))
    assert code == 1
    assert f"port {port} on 127.0.0.1 is in use; choose another with {option}" in error


def test_wrong_arguments(tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    free = ("--model", str(tiny_folder), "--port", "0")
    for arguments, code, words in (
        (("--model", str(tmp_path), "--port", "0"), 1, "config.json"),
        (("--port", "0"), 2, "--model is missing; give a checkpoint folder, or --config"),
        (("--config", str(tmp_path / "no.yaml")), 2, "cannot be read"),
        (
            ("--model", str(tiny_folder), "--port", "70000"),
            2,
            "--port must be between 0 and 65535, not 70000",
        ),
        (("--model", str(tiny_folder), "--port", "x"), 2, "--port"),
        ((*free, "--host", "not a host"), 2, "--host"),
        ((*free, "--max-model-len", "99999999"), 2, "max_model_len"),
        ((*free, "--kv-cache-memory", "1KB"), 1, "kv_cache_memory_bytes"),
        ((*free, "--dtype", "int3"), 2, "int3"),
        ((*free, "--adapter", str(tmp_path)), 1, "adapter_config.json"),
        (
            (*free, "--gpu-memory-utilization", "1.5"),
            2,
            "--gpu-memory-utilization must be above 0 and at most 1",
        ),
        ((*free, "--device-map", "balanced"), 2, "--device-map must be 'auto', not 'balanced'"),
        ((*free, "--limit-mm-per-prompt", '{"audio": 4}'), 2, "known are image and video"),
        ((*free, "--ssl-certfile", "no.pem"), 2, "ssl_certfile needs ssl_keyfile"),
        ((*free, "--ssl-certfile", "no.pem", "--ssl-keyfile", "no.key"), 2, "no.pem cannot be read"),
        ((*free, "--allowed-local-media-path", "no"), 2, "is not a folder"),
        ((*free, "--api-key-file", "no"), 2, "cannot be read"),
    ):
        found, error = fails(capsys, *arguments)
        assert (found, words in error) == (code, True), error


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(["serve", *arguments, "--print-config"])
    assert left.value.code in (0, None)
    return capsys.readouterr().out


def test_every_option_is_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    import inspect

    given = set(inspect.signature(command).parameters)
    for _, name, field in all_options():
        assert name in given
        assert len([one for one in given if one.partition("__also__")[0] == name]) == 1 + len(
            other_names(field)
        )
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    told = capsys.readouterr().out
    assert "Example:  sightline serve --model MODEL --port 8000" in told
    for words in ("--kv-cache-memory", "--no-access-log", "Limits of a request", "--config"):
        assert words in told
    assert "kv-cache-memory-bytes" not in told


def test_what_is_given_is_what_is_used(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("model: m\nport: 5\nmax_open: 3\n")
    text = printed(
        capsys,
        *("--config", str(config), "--port", "6", "--no-prefix-caching", "--kv_cache_memory", "1GiB"),
        *("--served-model-name", "a", "--served-model-name", "b", "--lora-modules", "x=y"),
        *("--limit-mm-per-prompt", "image=2"),
    )
    for line in (
        'model: "m"',
        "port: 6",
        "max_open: 3",
        "prefix_caching: false",
        f"kv_cache_memory: {2**30}",
        'served_model_name: ["a", "b"]',
        'adapter: ["x=y"]',
        f"limit_mm_per_prompt: {json.dumps({'image': 2})}",
    ):
        assert f"\n{line}\n" in text


@pytest.mark.parametrize("output", ["closed", "full", "left"])
def test_it_serves_and_ends_well_whatever_stdout_is(tiny_folder: Path, output: str) -> None:
    if output == "full" and not Path("/dev/full").exists():
        pytest.skip("a file that is always full is Linux's")
    port = str(free_ports(1)[0])
    command = [
        sys.executable,
        "-m",
        "sightline.cli.app",
        "serve",
        "--model",
        str(tiny_folder),
        *SMALL,
        "--port",
        port,
    ]
    where = {"closed": ">&-", "full": ">/dev/full", "left": ""}[output]
    process = subprocess.Popen(
        ["/bin/sh", "-c", f"exec {shlex.join(command)} {where}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    try:
        end = time.monotonic() + 60
        while time.monotonic() < end and process.poll() is None:
            with suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{port}/v2/health/ready").status_code == 200:
                    break
            time.sleep(0.1)
        time.sleep(0.3)  # so that the ready line is behind it
        process.terminate()
        assert process.wait(30) == 0, errors_of(process)
        assert "Error" not in errors_of(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
