"""Health, told truly: loading, stuck, slow, dead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from sightline import LLM
from sightline.server.health import Health
from sightline.server.run import Address, serve_in_background

STALL = 0.4  # seconds
LONG = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 50, "ignore_eos": True}


@pytest.fixture
def llm(tiny_folder: Path) -> Iterator[LLM]:
    llm = LLM(tiny_folder, dtype="fp32", device="cpu")
    yield llm
    llm.close()


@pytest.fixture
def release(llm: LLM) -> Iterator[threading.Event]:
    """Lets steps that a test holds up go on, at the latest when it ends."""
    release = threading.Event()
    yield release
    release.set()


def replace_step(llm: LLM, monkeypatch: pytest.MonkeyPatch, before: Callable[[], Any]) -> None:
    """Do something before each step is computed, in the engine's thread."""
    runner: Any = llm.engine._core._computer._runner
    run = runner.run

    def changed(step: Any) -> Any:
        before()
        return run(step)

    monkeypatch.setattr(runner, "run", changed)


def ask_beside(address: Address, replies: list[httpx.Response]) -> threading.Thread:
    def ask() -> None:
        replies.append(httpx.post(f"{address.url}/chat/completions", json=LONG, timeout=60))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread


def wait_for(address: Address, status: int, seconds: float = 20) -> httpx.Response:
    until = time.monotonic() + seconds
    while True:
        answer = httpx.get(f"{address.root}/health", timeout=5)
        if answer.status_code == status or time.monotonic() > until:
            return answer
        time.sleep(0.02)


def test_a_stuck_engine_is_noticed_and_its_recovery_too(
    llm: LLM, release: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    replace_step(llm, monkeypatch, lambda: release.wait(30))
    replies: list[httpx.Response] = []
    with serve_in_background(llm, settings={"stall_seconds": STALL}) as address:
        assert wait_for(address, 200).status_code == 200
        begun = time.monotonic()
        thread = ask_beside(address, replies)
        answer = wait_for(address, 503)
        assert STALL * 0.9 < time.monotonic() - begun < STALL + 3
        assert answer.json()["status"] == "stalled"
        assert "no sign of life for" in answer.json()["reason"]
        assert answer.headers["retry-after"] == "1"
        for path, status in (("/v2/health/live", 200), ("/v2/health/ready", 503), ("/ping", 503)):
            assert httpx.get(address.root + path).status_code == status
        assert httpx.get(f"{address.root}/health/timed-1").status_code == 503
        until = time.monotonic() + 10
        while "no sign of life" not in caplog.text:  # nobody needs to ask for it to be in the log
            assert time.monotonic() < until
            time.sleep(0.02)
        release.set()
        assert wait_for(address, 200).status_code == 200
        thread.join()
    assert replies[0].status_code == 200
    assert caplog.text.count("the server is not ready") == 1


def test_a_long_step_that_computes_is_not_a_stuck_one(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, matrix = iter([1.6]), torch.ones(400, 400)

    def compute() -> None:
        until = time.monotonic() + next(slow, 0.0)
        while time.monotonic() < until:
            torch.mm(matrix, matrix)

    replace_step(llm, monkeypatch, compute)
    replies: list[httpx.Response] = []
    states = set()
    with serve_in_background(llm, settings={"stall_seconds": STALL}) as address:
        thread = ask_beside(address, replies)
        silent = 0.0
        while thread.is_alive():
            states.add(httpx.get(f"{address.root}/health").status_code)
            silent = max(silent, llm.engine.stalled())
            time.sleep(0.02)
        thread.join()
    assert silent > 2 * STALL
    assert states == {200}
    assert replies[0].status_code == 200


def test_a_step_that_computes_without_end_is_stuck_at_last(
    llm: LLM, release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = torch.ones(400, 400)

    def spin() -> None:
        while not release.is_set():
            torch.mm(matrix, matrix)

    replace_step(llm, monkeypatch, spin)
    with serve_in_background(llm, settings={"stall_seconds": 0.1}) as address:
        begun = time.monotonic()
        thread = ask_beside(address, [])
        assert wait_for(address, 503).json()["status"] == "stalled"
        assert time.monotonic() - begun > 0.9
        release.set()
        thread.join()


def test_idle_for_long_is_not_stuck(llm: LLM) -> None:
    with serve_in_background(llm, settings={"stall_seconds": 0.05}) as address:
        httpx.post(f"{address.url}/chat/completions", json={**LONG, "max_tokens": 1}, timeout=60)
        time.sleep(0.3)
        assert httpx.get(f"{address.root}/health").status_code == 200


def test_timed_health_generates_where_nothing_else_does(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    replace_step(llm, monkeypatch, lambda: steps.append(1))
    with serve_in_background(llm) as address:
        assert httpx.get(f"{address.root}/health/timed-5").status_code == 200
        assert steps
        # Another one asks nothing of the engine so soon after.
        made = len(steps)
        assert httpx.get(f"{address.root}/health/timed").status_code == 200
        assert len(steps) == made
        for wrong in ("0", "-1", "601", "x", "1.5", "9" * 99, "000599999", "¹"):
            answer = httpx.get(f"{address.root}/health/timed-{wrong}")
            assert answer.status_code == 400, wrong
            assert answer.json()["error"]["message"].endswith(
                ": write /health/timed-N with N from 1 to 600 seconds"
            )
        assert httpx.get(f"{address.root}/nothing").json()["error"]["message"] == "GET /nothing: not found"
    assert llm.engine.stats().running == 0


def test_many_who_ask_share_one_probe(
    llm: LLM, release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_step(llm, monkeypatch, lambda: release.wait(30))
    answers: list[int] = []

    with serve_in_background(llm) as address:

        def ask() -> None:
            answers.append(httpx.get(f"{address.root}/health/timed-20", timeout=30).status_code)

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
            time.sleep(0.2)
        assert llm.engine.open_requests == 1
        release.set()
        for thread in threads:
            thread.join()
    assert answers == [200] * 8


def test_timed_health_waits_no_longer_than_it_says(
    llm: LLM, release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_step(llm, monkeypatch, lambda: release.wait(30))
    with serve_in_background(llm) as address:
        begun = time.monotonic()
        answer = httpx.get(f"{address.root}/health/timed-1", timeout=20)
        assert answer.status_code == 503
        assert answer.json()["status"] == "slow"
        assert 0.9 < time.monotonic() - begun < 5
        release.set()


def test_a_probe_is_not_answered_for_by_a_request_that_only_waits(
    llm: LLM, release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_step(llm, monkeypatch, lambda: release.wait(30))
    with serve_in_background(llm) as address:
        thread = ask_beside(address, [])
        time.sleep(1.3)  # the request's own arrival was a sign of life
        assert httpx.get(f"{address.root}/health/timed-1", timeout=20).status_code == 503
        release.set()
        thread.join()


def test_a_dead_engine(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def die() -> None:
        raise SystemExit("secret")

    replace_step(llm, monkeypatch, die)
    with serve_in_background(llm) as address:
        assert httpx.post(f"{address.url}/chat/completions", json=LONG, timeout=60).status_code == 500
        answer = httpx.get(f"{address.root}/health")
        assert (answer.status_code, answer.json()["status"]) == (503, "dead")
        assert "secret" not in answer.text
        assert httpx.get(f"{address.root}/v2/health/live").status_code == 200
        assert httpx.get(f"{address.root}/health/timed-1").status_code == 503


def test_before_the_model_is_there() -> None:
    health = Health()
    assert (health.state, health.ready, health.reason) == ("loading", False, "the model is being loaded")
    assert health.watch() == "loading"
    health.drain()
    assert health.state == "draining"
