"""The benchmarks run, count what the issue counted, and do not take a wrong answer for a fast one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import serve_http
import serve_offline
from offline import contest, measure, report, shapes, worker
from offline.counts import Counts
from offline.engines import Job, Prompt
from online import clock, contestants, process, workload
from online import report as online_report

from sightline.errors import SightlineError
from sightline.files import write_json

UNITS = {"bf16_flops": 1e12, "int8_ops": 2e12, "read_bytes": 1e10, "threads": 2.0}
SMALL_TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL_TOWER = {"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 64}


class Clockwork:
    """An engine on a clock of its own: a prompt takes 5 s the first time, a token 2 s."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, caches: bool = True, missing: int = 0) -> None:
        self.now, self.caches, self.missing = 0.0, caches, missing
        self.marks: list[float] = []
        self.prompt_tokens = 7
        self._seen: set[str | None] = set()
        monkeypatch.setattr(measure.time, "perf_counter", lambda: self.now)

    def generate(self, prompts: list[Prompt], new_tokens: int) -> list[list[int]]:
        fresh = {prompt.text for prompt in prompts} - (self._seen if self.caches else set())
        self._seen |= fresh
        start, first = self.now, 5.0 * len(fresh) + 2.0
        self.marks = [first + 2.0 * step for step in range(new_tokens)]
        self.now = start + self.marks[-1]
        return [[1] * (new_tokens - self.missing) for _ in prompts]

    def encode(self, prompt: Prompt) -> float:
        return 3.0


def job(mode: str, prompts: int = 2) -> Job:
    texts = [{"text": str(number)} for number in range(prompts)]
    return Job("", mode, "", {}, "cpu", texts, sequences=prompts, new_tokens=4, longest=64)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(text=str(number)) for number in range(count)]


@pytest.mark.parametrize("caches", [True, False])
def test_a_step_is_told_apart_from_the_prompt(monkeypatch: pytest.MonkeyPatch, caches: bool) -> None:
    found = measure.batch(Clockwork(monkeypatch, caches=caches), prompts(2), job("batch"))
    assert found["cold_s"] == 18
    assert found.get("repeat_s") == (8 if caches else None)
    assert found["decode_ms"] == 2000
    found = measure.context(Clockwork(monkeypatch, caches=caches), prompts(2), job("context"))
    assert (found["prefill_s"], found["decode_ms"]) == (12, 2000)
    found = measure.single(Clockwork(monkeypatch, caches=caches), prompts(3), job("single", 3))
    assert (found["prefill_s"], found["decode_ms"]) == (7, 2000)


def test_an_answer_of_another_length_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"answers of \[3, 3\] tokens instead of 4"):
        measure.batch(Clockwork(monkeypatch, missing=1), prompts(2), job("batch"))


def test_counts_of_the_2b_shape(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", shapes.SHAPES["qwen2-vl-2b"])
    write_json(tmp_path / "preprocessor_config.json", shapes.PREPROCESSOR)
    counts = Counts.of(tmp_path)
    # 8 pictures: 10.3 TFLOP in the linear layers and 1.4 in attention; 8 prompts of 276 tokens: 5.8.
    assert counts.patches((448, 448)) == 1024
    assert 8 * counts.encode_seconds((448, 448), "bf16", UNITS) == pytest.approx(10.4 + 1.37, rel=0.01)
    assert 8 * counts.encode_seconds((448, 448), "int8", UNITS) == pytest.approx(5.2 + 1.37, rel=0.01)
    assert counts.prefill_seconds(8 * 276, "bf16", UNITS) == pytest.approx(5.8, rel=0.01)
    # 3.1 GB a step in bf16, a quarter of that in int4; 28 KiB of keys and values a token.
    assert counts.step_bytes("bf16") == pytest.approx(3.09e9, rel=0.01)
    assert counts.step_bytes("int4") == pytest.approx(3.09e9 / 4, rel=0.01)
    assert counts.step_seconds("bf16", UNITS, 1000) - counts.step_seconds("bf16", UNITS) == pytest.approx(
        1000 * 28672 / 1e10
    )


def test_a_shape_is_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.models.loading import load_model

    config = shapes.SHAPES["qwen2-vl-2b"]
    small = config | SMALL_TEXT | {"vision_config": config["vision_config"] | SMALL_TOWER}
    monkeypatch.setitem(
        shapes.SHAPES, "small", small | {"rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}}
    )
    monkeypatch.setattr(shapes, "_SHARD_BYTES", 1 << 19)
    model = load_model(shapes.build_shape("small", tmp_path / "small"), device="cpu")
    assert len(list((tmp_path / "small").glob("*.safetensors"))) > 1
    tokenizer = model.tokenizer
    assert len(tokenizer) == 151657
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") == small["image_token_id"]
    assert tokenizer.decode(tokenizer.encode("a picture of words 12")) == "a picture of words 12"


def test_ours_runs_end_to_end(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(contest, "ceilings", lambda device: dict(UNITS))
    arguments = ["--engines", "sightline", "--model", str(tiny_folder), "--rounds", "1", "--requests", "2"]
    arguments += ["--image", "56x56", "--new-tokens", "3", "--json", str(tmp_path / "found.json")]
    serve_offline.run(serve_offline.parse(arguments))
    found = json.loads((tmp_path / "found.json").read_text())
    (measured,) = found["rounds"]["sightline"]
    assert measured["cold_s"] > 0
    assert measured["repeat_s"] > 0
    assert measured["prompt_tokens"] > 2 * 4
    assert measured["peak_memory_gb"] > 0.1
    assert "| sightline |" in capsys.readouterr().out


def test_an_engine_that_fails_is_named_with_its_words() -> None:
    absent = contest.Contestant("absent", "absent", "bf16", {})
    with pytest.raises(
        SightlineError, match=r"absent gave no result(.|\n)*No module named 'offline.engines.absent'"
    ):
        contest.measure(absent, job("batch"))


def test_ratios_compare_ours_with_peers_only() -> None:
    both = [contest.CONTESTANTS[name] for name in ("sightline", "sightline-int8", "vllm")]
    found = {
        one.name: {"cold_s": seconds, "ready_s": 1.0} for one, seconds in zip(both, (2, 1, 3), strict=True)
    }
    found["vllm"]["repeat_s"] = 5.0
    rows = report.ratios(both, found)
    assert [(row[""], row["cold"]) for row in rows] == [
        ("sightline : vllm", 1.5),
        ("sightline-int8 : vllm", 3.0),
    ]
    assert all("repeat" not in row for row in rows)


def test_engines_that_answer_otherwise_are_seen() -> None:
    rounds = {"a": [{"first_tokens": [1, 2]}, {"first_tokens": [3, 4]}], "b": [{"first_tokens": [1, 5]}] * 2}
    assert report.agreement(rounds) == "first tokens equal to those of a, of 4: b 1"
    assert report.agreement({"a": rounds["a"]}) is None
    assert report.agreement({"a": [{"encode_s": 1.0}], "b": [{"encode_s": 1.0}]}) is None


def test_peak_memory_counts_this_process() -> None:
    assert worker.peak_memory("cpu") > 50 << 20


def served(duration: float, ttft: float = 100.0, number: int = 0) -> dict[str, Any]:
    figures = dict.fromkeys((*online_report._FIGURES, *online_report._MORE), 1.0)
    level = {**figures, "duration": duration, "output_throughput": 10 / duration, "median_ttft_ms": ttft}
    return {"ready_s": 1.0, "round": number, "levels": {"4": level}}


def test_overhead_is_told_round_by_round() -> None:
    """Of two rounds, of which the slower one is slower for both."""
    rounds = {
        "sightline": [served(1.1, 30.0), served(2.04, 30.0, number=1)],
        "engine": [served(1.0, 28.0), served(2.0, 26.0, number=1)],
    }
    (row,) = online_report.overhead(rounds)
    assert row == {
        "clients": "4",
        "HTTP adds %": "+6.0",
        "least": "+2.0",
        "most": "+10.0",
        "to TTFT ms": "+3.0",
    }
    assert online_report.overhead({"sightline": rounds["sightline"]}) == []


def test_ratios_say_how_many_times_as_fast_the_server_is() -> None:
    rounds = {"sightline": [served(1.0, 50.0)], "engine": [served(1.0)], "vllm": [served(2.0, 200.0)]}
    middles = {name: online_report.middle(several) for name, several in rounds.items()}
    (row,) = online_report.ratios(middles)
    assert row == {"": "sightline : vllm", "tokens/s at 4": 2.0, "TTFT at 4": 4.0}


def test_a_server_s_processes_are_gone_at_the_end() -> None:
    import psutil

    # Not http.server.test: it looks up this machine's name first, which may take long.
    serving = """
import http.server, socketserver, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"])
place = ("127.0.0.1", int(sys.argv[2]))
socketserver.TCPServer(place, http.server.SimpleHTTPRequestHandler).serve_forever()
"""
    server = contestants.Server("plain", [sys.executable, "-c", serving], ready="/")
    with pytest.raises(KeyboardInterrupt), process.running(server) as it:
        family = [it.process, *it.process.children(recursive=True)]
        assert len(family) == 2
        assert 0 < it.ready_s < 60
        assert it.idle_share(0.2) < 0.9
        raise KeyboardInterrupt
    assert not any(psutil.pid_exists(one.pid) and one.status() != "zombie" for one in family)


def test_a_server_that_does_not_start_is_told_with_its_words() -> None:
    server = contestants.Server("bad", [sys.executable, "-c", "import sys; sys.exit('no such model')"])
    with (
        pytest.raises(SightlineError, match="bad ended with code 1; it wrote:\nno such model"),
        process.running(server),
    ):
        pass
    with (
        pytest.raises(SightlineError, match="gone: cannot start /nowhere/python"),
        process.running(contestants.Server("gone", ["/nowhere/python"])),
    ):
        pass


def test_the_load_generator_is_timed_by_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "STREAMS", (1, 4))
    rows = clock.measure(100.0, 0.3)
    assert [(row["streams"], row["chunks"], row["failed"]) for row in rows] == [(1, 30, 0), (4, 32, 0)]
    # A chunk is noted after it was sent: the clock is the same in both processes.
    assert all(0 < row["median_late_us"] < 1e6 for row in rows)


def test_servers_are_compared_end_to_end(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    small = workload.Workload("demo", {1: 1, 2: 3}, (56, 56), words=4, new_tokens=24, rounds=1)
    monkeypatch.setitem(workload.QUICK, "demo", small)
    arguments = ["--quick", "--model", str(tiny_folder), "--contestants", "sightline,engine,vllm"]
    arguments += ["--idle-seconds", "0.3", "--json", str(tmp_path / "found.json")]
    serve_http.run(serve_http.parse(arguments))
    found = json.loads((tmp_path / "found.json").read_text())["demo"]
    for name in ("sightline", "engine"):
        (one,) = found["rounds"][name]
        # Prompts are new in each run, and to one an untrained model may say nothing but special tokens.
        levels = list(one["levels"].values())
        assert [level["completed"] + level["failed"] for level in levels] == [1, 3]
        assert all("no text" in json.dumps(level["failures"]) for level in levels if level["failed"])
        assert [level["total_output_tokens"] for level in levels] == [24 * one["completed"] for one in levels]
        assert one["ready_s"] > 0
    # The same prompts for both.
    tokens = {
        one["levels"]["2"]["total_input_tokens"]
        for (one,) in map(found["rounds"].get, ("sightline", "engine"))
    }
    assert len(tokens) == 1
    assert list(found["failures"]) == ["vllm"]
    printed = capsys.readouterr().out
    assert "vllm failed: vllm runs in a Python of its own; give it with --vllm-python" in printed
    assert "HTTP adds %" in printed
