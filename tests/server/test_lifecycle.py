"""Starting, draining and ending, in this process; signals are tested in tests/cli/test_serve.py."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from sightline import LLM
from sightline.errors import SightlineError, UsageError
from sightline.server import lifecycle as lifecycle_module
from sightline.server import listen
from sightline.server.lifecycle import Lifecycle
from sightline.server.listen import Address
from sightline.server.run import listening, serve_in_background
from sightline.server.settings import ServeSettings

LONG = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1900, "ignore_eos": True}


@contextmanager
def running(
    load: Any, *, ends_with_engine: bool = False, **settings: Any
) -> Iterator[tuple[Lifecycle, dict[str, Address], threading.Thread]]:
    """A lifecycle in a thread, also before its model is there."""
    chosen = ServeSettings(model="tiny", port=0, **settings)
    found: dict[str, Address] = {}
    with listening(chosen) as listeners:
        lifecycle = Lifecycle(chosen, listeners, ends_with_engine=ends_with_engine)
        addresses = {prefix: listener.address("tiny") for prefix, listener in listeners.items()}

        def run() -> None:
            asyncio.run(lifecycle.run(load, found.update))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield lifecycle, addresses, thread
        finally:
            lifecycle.stop(force=True)
            thread.join(30)


def status(address: Address, path: str = "/health", seconds: float = 20) -> int:
    """Once there is an answer."""
    until = time.monotonic() + seconds
    while True:
        try:
            return httpx.get(address.root + path, timeout=5).status_code
        except httpx.ConnectError:
            assert time.monotonic() < until
            time.sleep(0.02)


def wait_until(condition: Any, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def stream_beside(address: Address, body: dict[str, Any], texts: list[str]) -> threading.Thread:
    def read() -> None:
        options = {"json": {**body, "stream": True}, "timeout": 60}
        with httpx.stream("POST", f"{address.url}/chat/completions", **options) as answer:
            texts.append("".join(answer.iter_text()))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def test_while_the_model_is_loaded_the_ports_say_so(served_llm: LLM) -> None:
    loaded = threading.Event()

    def load() -> LLM:
        assert loaded.wait(30)
        return served_llm

    with running(load, management_port=0) as (_, addresses, _):
        for address in addresses.values():
            assert status(address) == 503
            assert status(address, "/v2/health/live") == 200
            assert httpx.get(f"{address.root}/health").json()["status"] == "loading"
        refused = httpx.post(f"{addresses[''].url}/chat/completions", json=LONG)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert refused.json()["error"]["message"] == "the model is being loaded"
        loaded.set()
        wait_until(lambda: status(addresses[""]) == 200)


def test_a_model_that_cannot_be_loaded_ends_the_server() -> None:
    def load() -> LLM:
        raise SightlineError("no room")

    settings = ServeSettings(model="tiny", port=0)
    with listening(settings) as listeners:
        with pytest.raises(SightlineError, match="no room"):
            asyncio.run(Lifecycle(settings, listeners).run(load, lambda addresses: None))
        with pytest.raises(OSError, match=r"refused|Bad file"):
            socket.create_connection(listeners[""].socket.getsockname())


def test_a_stop_while_the_model_is_loaded_does_not_wait_for_it() -> None:
    loaded = threading.Event()
    with running(lambda: loaded.wait(30)) as (lifecycle, addresses, thread):
        assert status(addresses[""]) == 503
        lifecycle.stop()
        thread.join(5)
        assert not thread.is_alive()
        assert lifecycle.llm is None
        loaded.set()


def test_draining_answers_probes_and_lets_streams_end(served_llm: LLM) -> None:
    texts: list[str] = []
    with running(lambda: served_llm, drain_seconds=30) as (lifecycle, addresses, thread):
        address = addresses[""]
        wait_until(lambda: status(address) == 200)
        reader = stream_beside(address, {**LONG, "max_tokens": 400}, texts)
        wait_until(lambda: served_llm.engine.stats().running == 1)
        lifecycle.stop()
        wait_until(lambda: status(address) == 503)
        assert httpx.get(f"{address.root}/health").json()["status"] == "draining"
        assert status(address, "/v2/health/live") == 200
        refused = httpx.post(f"{address.url}/chat/completions", json=LONG)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        thread.join(30)
        assert not thread.is_alive()
        reader.join(5)
    assert texts[0].endswith("data: [DONE]\n\n")
    assert '"finish_reason":"length"' in texts[0].replace(" ", "")


def test_what_outlasts_the_drain_ends_with_an_error(served_llm: LLM) -> None:
    texts: list[str] = []
    with running(lambda: served_llm, drain_seconds=0.2) as (lifecycle, addresses, thread):
        wait_until(lambda: status(addresses[""]) == 200)
        readers = [stream_beside(addresses[""], LONG, texts) for _ in range(6)]  # two of them wait
        wait_until(lambda: served_llm.engine.stats().running == 4 and lifecycle._traffic.open == 6)
        begun = time.monotonic()
        lifecycle.stop()
        thread.join(20)
        assert not thread.is_alive()
        assert time.monotonic() - begun < 8
        for reader in readers:
            reader.join(5)
    assert len(texts) == 6
    for text in texts:
        assert "the server is stopping" in text
    assert sum(text.endswith("data: [DONE]\n\n") for text in texts) >= 4  # the others had not begun to stream
    assert served_llm.engine.stats().running == 0


def test_a_second_stop_by_force_does_not_wait(served_llm: LLM) -> None:
    texts: list[str] = []
    with running(lambda: served_llm, drain_seconds=60) as (lifecycle, addresses, thread):
        wait_until(lambda: status(addresses[""]) == 200)
        reader = stream_beside(addresses[""], LONG, texts)
        wait_until(lambda: served_llm.engine.stats().running == 1)
        lifecycle.stop()
        time.sleep(0.2)
        assert thread.is_alive()
        lifecycle.stop(force=True)
        thread.join(10)
        assert not thread.is_alive()
        reader.join(5)
    assert "the server is stopping" in texts[0]


def test_a_dead_engine_ends_the_server_with_the_reason(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(tiny_folder, dtype="fp32", device="cpu")

    def die(step: Any) -> None:
        raise SystemExit("broken card")

    monkeypatch.setattr(llm.engine._core._computer._runner, "run", die)
    with running(lambda: llm, ends_with_engine=True, stall_seconds=0.4) as (lifecycle, addresses, thread):
        wait_until(lambda: status(addresses[""]) == 200)
        # Whoever asked hears of it before the server goes.
        assert httpx.post(f"{addresses[''].url}/chat/completions", json=LONG, timeout=30).status_code == 500
        thread.join(20)
        assert not thread.is_alive()
    assert "the engine died (SystemExit: broken card)" in str(lifecycle.failure)


def test_a_stuck_engine_is_not_waited_for(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    llm = LLM(tiny_folder, dtype="fp32", device="cpu")
    release = threading.Event()
    monkeypatch.setattr(llm.engine._core._computer._runner, "run", lambda step: release.wait(60))
    monkeypatch.setattr(lifecycle_module, "_CUT_SECONDS", 0.2)
    monkeypatch.setattr(listen, "_UNREAD_SECONDS", 0.3)
    replies: list[httpx.Response] = []
    try:
        with running(lambda: llm, stall_seconds=0.3, drain_seconds=60) as (lifecycle, addresses, thread):
            wait_until(lambda: status(addresses[""]) == 200)
            url = f"{addresses[''].url}/chat/completions"
            asking = threading.Thread(target=lambda: replies.append(httpx.post(url, json=LONG, timeout=60)))
            asking.start()
            wait_until(lambda: lifecycle.health.state == "stalled")
            lifecycle.stop()
            thread.join(10)
            assert not thread.is_alive()
            asking.join(10)
    finally:
        release.set()
        llm.close()
    assert (replies[0].status_code, replies[0].json()["error"]["message"]) == (503, "the server is stopping")
    assert "Exception in ASGI application" not in caplog.text


def test_three_ports_each_with_its_own_routes(served_llm: LLM) -> None:
    settings = {"management_port": 0, "metrics_port": 0}
    with running(lambda: served_llm, **settings) as (_, addresses, _):
        api, management, metrics = (addresses[prefix] for prefix in ("", "management_", "metrics_"))
        wait_until(lambda: status(api) == 200)
        expected = {
            "/health": (200, 200, 200),
            "/v2/health/ready": (200, 200, 200),
            "/v1/models": (200, 404, 404),
            "/": (200, 404, 404),
            "/metrics": (404, 404, 200),
            "/v1/config": (404, 200, 404),
            "/info": (404, 200, 404),
        }
        for path, codes in expected.items():
            found = tuple(status(address, path) for address in (api, management, metrics))
            assert found == codes, path
        body = {"lora_name": "x", "lora_path": "/nowhere"}
        answers = [httpx.post(f"{one.root}/v1/load_lora_adapter", json=body) for one in (api, management)]
        assert [answer.status_code for answer in answers] == [404, 400]


def test_management_stops_the_server(served_llm: LLM) -> None:
    with running(lambda: served_llm, management_port=0) as (_, addresses, thread):
        wait_until(lambda: status(addresses[""]) == 200)
        evil = {"sec-fetch-site": "same-site"}
        url = f"{addresses['management_'].root}/stopService"
        assert httpx.get(url, headers=evil).status_code == 403
        assert httpx.get(url).status_code == 200
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:1"}, 200),
        ({"x-forwarded-for": "127.0.0.1"}, 403),
        ({"forwarded": "for=127.0.0.1"}, 403),
        ({"via": "1.1 proxy"}, 403),
        ({"host": "box.example"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
        # A browser that does not say who asks, as none does over plain http to another machine.
        ({"user-agent": "Mozilla/5.0 (X11; Linux x86_64)"}, 403),
        ({"user-agent": "Mozilla/5.0 (X11; Linux x86_64)", "sec-fetch-site": "none"}, 200),
        ({"user-agent": "curl/8.5.0"}, 200),
    ],
)
def test_on_one_port_only_this_machine_manages(
    everywhere: Address, headers: dict[str, str], status: int
) -> None:
    url = f"http://127.0.0.1:{everywhere.port}/v1/config"
    assert httpx.get(url, headers=headers).status_code == status
    # The others are for everyone who may call the server.
    if "sec-fetch-site" not in headers:
        models = f"http://127.0.0.1:{everywhere.port}/v1/models"
        assert httpx.get(models, headers=headers).status_code == 200


@pytest.fixture(scope="module")
def everywhere(served_llm: LLM) -> Iterator[Address]:
    with serve_in_background(served_llm, host="0.0.0.0") as address:
        yield address


def test_another_machine_may_not_manage(everywhere: Address) -> None:
    own = next((entry[4][0] for entry in _addresses() if not entry[4][0].startswith("127.")), None)
    if own is None:
        pytest.skip("this machine has no address but its loopback")
    assert httpx.get(f"http://{own}:{everywhere.port}/v1/models").status_code == 200
    answer = httpx.get(f"http://{own}:{everywhere.port}/v1/config")
    assert answer.status_code == 403
    assert "--management-port" in answer.json()["error"]["message"]


def _addresses() -> list[Any]:
    try:
        return socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
    except OSError:
        return []


@pytest.mark.parametrize("prefix", ["", "management_", "metrics_"])
def test_a_taken_port_names_its_option(prefix: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = {"port": 0, f"{prefix}port": port}
        option = f"--{prefix}port".replace("_", "-")
        with pytest.raises(SightlineError, match=f"port {port} on 127.0.0.1 is in use.* {option} "):
            listening(ServeSettings(model="m", **ports)).__enter__()


def test_two_servers_that_took_the_same_port_do_not_both_listen(served_llm: LLM) -> None:
    """Ports are taken before they are listened on, and only then is there a conflict."""
    settings = ServeSettings(model="tiny", port=0)
    with listening(settings) as first:
        first[""].socket.listen()
        port = first[""].socket.getsockname()[1]
        # Some systems know when the port is taken, others when it is listened on.
        with (
            pytest.raises(SightlineError, match=f"port {port} on 127.0.0.1 is in use"),
            listening(ServeSettings(model="tiny", port=port)) as second,
        ):
            asyncio.run(Lifecycle(settings, second).run(lambda: served_llm, lambda addresses: None))


def test_hosts_that_are_none() -> None:
    for host in ("not a host", "256.1.1.1", "x" * 300):
        with pytest.raises(UsageError, match="cannot listen on .*; see --host and --port"):
            listening(ServeSettings(model="m", host=host, port=0)).__enter__()


def test_ipv6(served_llm: LLM) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serve_in_background(served_llm, host="::1") as address:
        assert address.root.startswith("http://[::1]:")
        assert httpx.get(f"{address.root}/health").status_code == 200
