"""The arithmetic, on samples made by hand."""

from __future__ import annotations

import pytest

from sightline.bench.serve.load import Measured
from sightline.bench.serve.metrics import read_goodput, statistics, summarize
from sightline.bench.serve.outcome import Outcome
from sightline.bench.serve.report import DETAILS, block, record
from sightline.errors import UsageError

# As vllm bench serve writes them (vLLM 0.2x, benchmarks/serve.py), without those of its tokenizer.
VLLM_KEYS = {
    *("duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput"),
    *("request_goodput", "output_throughput", "total_token_throughput", "input_lens", "output_lens", "ttfts"),
    *("itls", "start_times", "generated_texts", "errors", "max_output_tokens_per_s"),
    "max_concurrent_requests",
    *(
        f"{kind}_{name}_ms"
        for kind in ("mean", "median", "std", "p99")
        for name in ("ttft", "tpot", "itl", "e2el")
    ),
}


def answered(start: float, ttft: float, itls: list[float], *, tokens: int | None = None) -> Outcome:
    return Outcome(
        start=start,
        ttft=ttft,
        itls=itls,
        latency=ttft + sum(itls),
        chunks=len(itls) + 1,
        input_tokens=10,
        output_tokens=len(itls) + 1 if tokens is None else tokens,
    )


def failed(kind: str, error: str) -> Outcome:
    return Outcome(start=100.0, kind=kind, error=error)


SAMPLE = [
    answered(100.0, 0.5, [0.1, 0.3]),
    answered(100.2, 0.7, [0.2]),
    answered(102.0, 0.2, []),
    failed("status 503", "503: full"),
    failed("status 503", "503: still full"),
]


def test_figures_of_a_small_sample() -> None:
    found = summarize(
        Measured(SAMPLE, 4.0, 100.0), percentiles=(50, 99.5), goodput={"ttft": 600, "tpot": 250}
    )
    assert (found["completed"], found["failed"], found["duration"]) == (3, 2, 4.0)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (30, 6)
    assert (found["request_throughput"], found["output_throughput"]) == (0.75, 1.5)
    assert found["total_token_throughput"] == 9.0
    assert found["mean_ttft_ms"] == pytest.approx(1400 / 3)
    assert found["median_ttft_ms"] == pytest.approx(500)
    # A single token has no time per token after the first: two requests have one, each 0.2 s.
    assert found["mean_tpot_ms"] == pytest.approx(200)
    assert found["std_tpot_ms"] == pytest.approx(0, abs=1e-6)
    assert found["mean_itl_ms"] == pytest.approx(200)
    assert found["median_itl_ms"] == pytest.approx(200)
    assert found["mean_e2el_ms"] == pytest.approx(2000 / 3)
    # Linear between the two highest of 0.2, 0.5, 0.7 s.
    assert found["p99.5_ttft_ms"] == pytest.approx(500 + 200 * 0.99)
    assert found["p50_ttft_ms"] == found["median_ttft_ms"]
    assert found["failures"] == {"status 503": {"count": 2, "example": "503: full"}}


def test_goodput_counts_requests_within_every_limit() -> None:
    def good(**limits: float) -> float:
        return float(summarize(Measured(SAMPLE, 1.0, 100.0), goodput=limits)["request_goodput"])

    assert good(ttft=600) == 2
    assert good(ttft=600, e2el=300) == 1
    assert good(tpot=150) == 1  # the one of a single token
    assert good(ttft=100) == 0
    assert summarize(Measured(SAMPLE, 1.0, 100.0))["request_goodput"] is None


def test_peaks() -> None:
    found = summarize(Measured(SAMPLE, 4.0, 100.0))
    # Two at once; the third begins when both have ended. Tokens at 0.5, 0.6, 0.9 and 0.9 s, the rest later.
    assert found["max_concurrent_requests"] == 2
    assert found["max_output_tokens_per_s"] == 4
    in_turn = [answered(100.0, 1.0, []), answered(101.0, 1.0, [])]
    assert summarize(Measured(in_turn, 2.0, 100.0))["max_concurrent_requests"] == 1
    # Eight tokens in two chunks are four each.
    found = summarize(Measured([answered(100.0, 0.5, [1.0], tokens=8)], 2.0, 100.0))
    assert found["max_output_tokens_per_s"] == 4
    # Within half a second come four tokens: eight a second.
    found = summarize(Measured([answered(100.0, 0.2, [0.1, 0.1, 0.1])], 0.5, 100.0))
    assert found["max_output_tokens_per_s"] == found["output_throughput"] == 8


def test_stages_are_read_in_milliseconds_and_seconds() -> None:
    outcomes = [answered(100.0, 0.1, [0.1]) for _ in range(2)]
    outcomes[0].timings = {"encode_ms": 10.0, "queue": 0.002, "prompt_n": 5}
    outcomes[1].timings = {"encode_ms": 30.0, "queue": "soon"}
    stages = summarize(Measured(outcomes, 1.0, 100.0))["stages"]
    assert set(stages) == {"encode", "queue"}
    assert stages["encode"]["mean"] == pytest.approx(20)
    assert stages["queue"]["p99"] == pytest.approx(2)
    assert "Encode (ms):" in block(summarize(Measured(outcomes, 1.0, 100.0)))


def test_the_names_are_those_of_vllm() -> None:
    found = summarize(Measured(SAMPLE, 4.0, 100.0))
    assert set(found) >= VLLM_KEYS
    assert [len(found[name]) for name in DETAILS] == [5] * len(DETAILS)
    assert not set(record(found, detailed=False)) & set(DETAILS)
    assert record(found, detailed=True) == found


def test_the_block_has_vllm_s_lines() -> None:
    found = summarize(Measured(SAMPLE, 4.0, 100.0), goodput={"ttft": 600})
    lines = block({**found, "max_concurrency": 2, "request_rate": 3.0}, metrics=("ttft", "e2el")).splitlines()
    assert lines[0] == "============ Serving Benchmark Result ============"
    for line in (
        "Successful requests:                     3",
        "Failed requests:                         2",
        "Maximum request concurrency:             2",
        "Request rate configured (RPS):           3.00",
        "Request goodput (req/s):                 0.50",
        "Output token throughput (tok/s):         1.50",
        "---------------Time to First Token----------------",
        "P99 TTFT (ms):                           696.00",
        "2 failed (status 503), such as: 503: full",
    ):
        assert line in lines
    assert not any("TPOT" in line for line in lines)


def test_nothing_answered_is_no_division_by_zero() -> None:
    found = summarize(Measured([failed("refused", "the connection was refused")], 0.0, 100.0))
    assert (found["completed"], found["mean_ttft_ms"], found["request_throughput"]) == (0, 0.0, 0.0)
    assert "1 failed (refused)" in block(found)
    assert summarize(Measured([], 1.0, 100.0))["max_concurrent_requests"] == 0


def test_percentile_names() -> None:
    assert set(statistics("ttft", [1.0], (50.0, 99.9))) == {
        *("mean_ttft_ms", "median_ttft_ms", "std_ttft_ms"),
        *("p50_ttft_ms", "p99.9_ttft_ms"),
    }


def test_goodput_is_read_as_vllm_s_users_write_it() -> None:
    assert read_goodput(["ttft:500 tpot:50", "e2el:2000.5"]) == {"ttft": 500, "tpot": 50, "e2el": 2000.5}
    for wrong in ("itl:5", "ttft=500", "ttft:", "ttft:-1"):
        with pytest.raises(UsageError, match="--goodput"):
            read_goodput([wrong])
