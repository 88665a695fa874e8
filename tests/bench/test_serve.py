"""A whole load against a server that follows a script, and against ours."""

from __future__ import annotations

import asyncio
import math
import os
import re
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from scripted import DONE, Answer, Scripted, as_json, delta, plain, usage

from sightline.bench.serve.arrivals import Arrivals
from sightline.bench.serve.bench import BenchSettings, bench
from sightline.bench.serve.datasets import DataSettings
from sightline.bench.serve.load import run_load
from sightline.bench.serve.outcome import Outcome
from sightline.errors import SightlineError, UsageError

Start = Callable[..., Scripted]
SMALL = DataSettings(input_len=4, output_len=5)
FIELDS = {"stream_options": {"include_usage": True}}


def measure(server: Scripted, **settings: Any) -> dict[str, Any]:
    given = {"data": SMALL, "prompts": 4, "warmup": 0, "timeout": 20.0, "fields": FIELDS, **settings}
    (result,) = bench(BenchSettings(base_url=server.url, **given))
    return result


def test_times_are_the_server_s_own(scripted: Start) -> None:
    server = scripted(plain(tokens=6, delay=0.03))
    found = measure(server, max_concurrency=2)
    assert (found["completed"], found["failed"], found["model_id"]) == (4, 0, "first")
    assert found["total_output_tokens"] == 24
    assert found["total_input_tokens"] == 28
    assert found["generated_texts"] == ["t0 t1 t2 t3 t4 t5 "] * 4
    # Pieces: the role, six tokens, and what follows them. The first requests asked for the model, /tokenize and a try.
    for gaps, sent in zip(found["itls"], server.sent[3:], strict=True):
        written = [after - before for before, after in pairwise(sent[1:7])]
        assert len(gaps) == 5
        assert sum(gaps) == pytest.approx(sum(written), abs=0.1)
    own = statistics.median(times[1] - times[0] for times in server.sent[3:])
    assert found["median_ttft_ms"] / 1e3 == pytest.approx(own, abs=0.1)
    assert min(found["ttfts"]) >= 0.03
    for latency, ttft, tokens in zip(found["latencies"], found["ttfts"], found["output_lens"], strict=True):
        assert latency >= ttft + 5 * 0.03
        assert tokens == 6
    tpots = [(end - first) / 5 for end, first in zip(found["latencies"], found["ttfts"], strict=True)]
    assert found["mean_tpot_ms"] == pytest.approx(1e3 * statistics.mean(tpots))
    assert found["duration"] >= 2 * 6 * 0.03


def test_no_more_than_asked_for_are_open(scripted: Start) -> None:
    server = scripted(plain(tokens=2, delay=0.01))
    measure(server, prompts=12, max_concurrency=3)
    assert server.most_open == 3
    # Connections are kept for the next request.
    assert server.connections <= 4
    together = scripted(plain(tokens=2, delay=0.1))
    measure(together, prompts=6)
    assert together.most_open == 6


def test_connections_that_the_server_does_not_keep(scripted: Start) -> None:
    server = scripted(replace(plain(tokens=2), closes=True))
    found = measure(server, prompts=10, max_concurrency=2)
    assert (found["completed"], found["failures"]) == (10, {})
    assert server.connections > 10


def test_a_connection_closed_after_the_request_was_sent_is_tried_anew(scripted: Start) -> None:
    """As a server does whose patience with an idle connection ends at that moment; nothing was answered yet."""
    server = scripted(plain(tokens=2))
    server.hang_up_at = 5  # the second counted one, behind the model, /tokenize, the try and the first
    found = measure(server, prompts=4, max_concurrency=1)
    assert (found["completed"], found["failures"]) == (4, {})
    assert server.hang_ups == 1


def test_a_rate_spreads_the_requests(scripted: Start) -> None:
    server = scripted(plain(tokens=1))
    found = measure(server, prompts=10, arrivals=Arrivals(rate=25.0))
    starts = found["start_times"]
    assert found["request_rate"] == 25.0
    assert found["load_kind"] == "rate"
    # The last one is due after exactly 0.4 s; none comes before its time.
    assert starts[-1] - starts[0] > 0.2
    assert found["duration"] >= 0.4
    assert len({round(start, 4) for start in starts}) > 5


def test_what_is_sent(scripted: Start) -> None:
    server = scripted(plain())
    data = replace(SMALL, dataset="random-mm", images=2)
    fields = {"temperature": 0.0, "top_k": 3, **FIELDS}
    measure(
        server, data=data, fields=fields, prompts=2, headers={"Authorization": "Bearer key"}, model="mine"
    )
    for body in server.bodies[1:]:
        assert (body["model"], body["temperature"], body["top_k"], body["max_tokens"]) == ("mine", 0.0, 3, 5)
        assert body["stream"] is True
        assert body["stream_options"] == {"include_usage": True}
        (message,) = body["messages"]
        assert [part["type"] for part in message["content"]] == ["image_url", "image_url", "text"]
        assert message["content"][0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    urls = [
        part["image_url"]["url"] for body in server.bodies[1:] for part in body["messages"][0]["content"][:2]
    ]
    assert len(set(urls)) == 4
    assert all("Authorization: Bearer key" in head for head in server.heads)


def test_completions_get_a_prompt(scripted: Start) -> None:
    server = scripted(plain())
    found = measure(server, endpoint="/v1/completions", prompts=1)
    assert found["backend"] == "openai"
    assert len(server.bodies[-1]["prompt"].split()) == 4
    assert "messages" not in server.bodies[-1]
    with pytest.raises(SightlineError, match="takes no pictures"):
        measure(server, endpoint="/v1/completions", data=replace(SMALL, dataset="random-mm"))


def test_failures_are_counted_by_kind(scripted: Start) -> None:
    broken = [
        as_json({"error": {"message": "too many wait"}}, status=503),
        as_json({"error": {"message": "too many wait"}}, status=503),
        Answer([(0.0, delta("a"))], cut=True),
        Answer([(0.0, delta("a")), (0.0, b'data: {"error": {"message": "it died"}}\n\n'), (0.0, DONE)]),
        Answer([(0.0, delta("a"))]),
        Answer([(0.0, delta(finish="stop")), (0.0, DONE)]),
        Answer([(0.0, delta("a")), (5.0, DONE)]),
    ]
    answers = iter([plain(), *broken, plain(), plain()])
    found = measure(scripted(lambda body: next(answers)), prompts=9, max_concurrency=1, timeout=1.0)
    assert (found["completed"], found["failed"]) == (2, 7)
    kinds = {kind: one["count"] for kind, one in found["failures"].items()}
    assert kinds == {
        "status 503": 2,
        "connection lost": 1,
        "error in the stream": 1,
        "cut off": 1,
        "no text": 1,
        "timed out": 1,
    }
    assert found["failures"]["status 503"]["example"] == "503: too many wait"
    assert found["errors"][3] == "it died"
    assert found["output_lens"] == [0] * 7 + [3, 3]


def test_characters_that_arrive_in_halves(scripted: Start) -> None:
    event = delta("漢字é").replace(b"\\u6f22\\u5b57\\u00e9", "漢字é".encode())
    assert "漢字é".encode() in event
    halves = [(0.001, event[at : at + 1]) for at in range(len(event))]
    found = measure(scripted(Answer([*halves, (0.0, DONE)])), prompts=1)
    assert found["generated_texts"] == ["漢字é"]


def test_without_usage_chunks_or_texts_are_counted(scripted: Start) -> None:
    answer = Answer(
        [(0.0, delta("one two")), (0.01, delta(" three")), (0.0, delta(finish="stop")), (0.0, DONE)]
    )
    found = measure(scripted(answer))
    assert (found["output_lens"], found["output_tokens_from"]) == ([2] * 4, "chunks")
    assert (found["input_lens"], found["input_tokens_from"]) == ([4] * 4, "words")
    assert found["text_lengths_by"] == "words"
    found = measure(scripted(answer, tokenizes=True))
    assert found["output_lens"] == [3] * 4
    assert found["text_lengths_by"] == "server"


def test_an_answer_that_is_no_stream(scripted: Start) -> None:
    body = {
        "choices": [{"message": {"content": "all at once"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3},
    }
    found = measure(scripted(as_json(body)))
    assert (found["completed"], found["not_streamed"]) == (4, 4)
    assert found["ttfts"] == found["latencies"]


def test_the_server_s_stages_are_kept(scripted: Start) -> None:
    ends = [(0.0, usage(3, 1, timings={"encode_ms": 12.5, "queue_ms": 1.0})), (0.0, DONE)]
    found = measure(scripted(Answer([(0.0, delta("a")), *ends])))
    assert found["stages"]["encode"] == {"mean": 12.5, "median": 12.5, "p99": 12.5}


def test_fields_that_a_server_refuses_are_left_out(scripted: Start) -> None:
    """As transformers' server does with stream_options, and OpenAI's with max_tokens."""

    def picky(body: dict[str, Any]) -> Answer:
        for name in ("stream_options", "max_tokens"):
            if name in body:
                return as_json({"detail": f"Unexpected fields in the request: {{'{name}'}}"}, status=422)
        return plain()

    server = scripted(picky)
    found = measure(server)
    assert found["completed"] == 4
    assert found["left_out"] == ["stream_options"]
    assert server.bodies[-1]["max_completion_tokens"] == 5


def test_a_server_that_cannot_be_used(scripted: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(SightlineError, match=rf"cannot reach http://127.0.0.1:{port}: .*refused.*--base-url"):
        bench(BenchSettings(base_url=f"http://127.0.0.1:{port}"))
    with pytest.raises(SightlineError, match="first small request: 404: no such model; see"):
        measure(scripted(as_json({"error": {"message": "no such model"}}, status=404)))
    server = scripted(plain())
    for status, words in (
        (503, "is not ready (503: later)"),
        (401, "refuses access (401: later); give --api-key"),
    ):
        server.models = as_json({"error": {"message": "later"}}, status=status)
        with pytest.raises(SightlineError, match=re.escape(words)):
            measure(server)
    for address in ("ftp://a", "127.0.0.1:80", "http://a:b"):
        with pytest.raises(UsageError, match="--base-url"):
            bench(BenchSettings(base_url=address))


def test_a_base_with_v1_is_openai_s(scripted: Start) -> None:
    server = scripted(plain())
    (found,) = bench(BenchSettings(base_url=f"{server.url}/v1", data=SMALL, prompts=1, warmup=0))
    assert found["completed"] == 1
    assert server.heads[0].startswith("GET /v1/models ")
    assert server.heads[-1].startswith("POST /v1/chat/completions ")


def test_a_sweep_asks_new_prompts_at_each_load(scripted: Start) -> None:
    server = scripted(plain(tokens=1, delay=0.005))
    settings = BenchSettings(base_url=server.url, data=SMALL, prompts=3, warmup=1, sweep=(1, 2))
    first, second = bench(settings)
    assert [first["max_concurrency"], second["max_concurrency"]] == [1, 2]
    assert [first["load"], second["load"]] == [1, 2]
    texts = [body["messages"][0]["content"] for body in server.bodies]
    assert len(texts) == 1 + 2 * 4  # the try, and a warm-up beside the three of each load
    assert len(set(texts)) == len(texts)
    (rate,) = bench(replace(settings, sweep=(50.0,), sweep_rates=True))
    assert (rate["load_kind"], rate["load"]) == ("rate", 50.0)


def test_how_many_are_asked_by_default(scripted: Start, tmp_path: Path) -> None:
    assert [load.prompts for load in BenchSettings(sweep=(1, 4)).loads()] == [10, 32]
    assert [load.prompts for load in BenchSettings(sweep=(1, 4), prompts=7).loads()] == [7, 7]
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": [{"role": "user", "content": "a"}]}\n' * 5)
    data = DataSettings(dataset=str(rows))
    server = scripted(plain())
    found = measure(server, data=data, prompts=None, warmup=2)
    assert found["num_prompts"] == 3  # those that the warm-up leaves


def test_the_same_seed_asks_the_same(scripted: Start) -> None:
    server = scripted(plain(tokens=1))
    for _ in range(2):
        measure(server, seed=5, max_concurrency=1)
    texts = [body["messages"][0]["content"] for body in server.bodies]
    assert texts[:5] == texts[5:]
    assert measure(server)["seed"] != measure(server)["seed"]


def test_ctrl_c_leaves_what_has_been_measured(scripted: Start) -> None:
    server = scripted(plain(tokens=2, delay=0.05))

    def press() -> None:
        while len(server.bodies) < 6:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    found = measure(server, prompts=1000, max_concurrency=1)
    assert found["completed"] >= 3
    assert found["completed"] + found["unanswered"] == 1000


def test_ctrl_c_between_two_arrivals_waits_for_no_answer(scripted: Start) -> None:
    server = scripted(lambda body: plain(tokens=1, delay=0.0 if len(server.bodies) == 1 else 30.0))

    def press() -> None:
        while len(server.bodies) < 4:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    found = measure(server, prompts=1000, arrivals=Arrivals(rate=20.0))
    assert (found["completed"], found["failed"], found["unanswered"]) == (0, 0, 1000)
    assert found["duration"] < 15


def test_a_place_is_waited_for_outside_of_a_request_s_time() -> None:
    async def call(outcome: Outcome) -> None:
        await asyncio.sleep(0.05)
        outcome.chunks, outcome.latency = 1, time.perf_counter() - outcome.start

    measured = asyncio.run(run_load([call] * 4, [0.0] * 4, max_concurrency=1, progress=False))
    starts = [one.start for one in measured.outcomes]
    assert all(after - before >= 0.05 for before, after in pairwise(starts))
    assert measured.seconds >= 0.2
    assert all(one.latency < 0.15 for one in measured.outcomes)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompts": 0}, "--num-prompts"),
        ({"max_concurrency": 0}, "--max-concurrency"),
        ({"timeout": 0.0}, "--timeout"),
        ({"percentiles": (101.0,)}, "--metric-percentiles"),
        ({"sweep": (1.5,)}, "--sweep takes"),
        ({"sweep": (0.0,), "sweep_rates": True}, "--sweep-rates"),
        ({"sweep": (1.0,), "arrivals": Arrivals(rate=2.0)}, "a sweep sets the load"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        BenchSettings(**settings)


def test_against_our_own_server(tiny_folder: Path) -> None:
    from sightline.server.run import serve_in_background

    with serve_in_background(tiny_folder, device="cpu", dtype="fp32") as address:
        data = replace(SMALL, dataset="random-mm", input_len=12, output_len=6)
        settings = BenchSettings(base_url=address.root, data=data, prompts=5, sweep=(2,))
        settings = replace(settings, fields={"temperature": 0.0, "ignore_eos": True, **FIELDS})
        (found,) = bench(settings)
    assert (found["completed"], found["failures"]) == (5, {})
    assert found["output_lens"] == [6] * 5
    # Pictures count: more than the words, and the same for each.
    assert min(found["input_lens"]) > 12 + 4
    assert found["mean_ttft_ms"] > 0
    assert math.isfinite(found["p99_e2el_ms"])
    assert found["input_tokens_from"] == found["output_tokens_from"] == "server"
