"""What /metrics tells, held against what requests did."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image as Pillow
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from sightline import LLM, SamplingParams
from sightline.data.conversation import Conversation, Image, Message, Text
from sightline.engine.errors import EngineFull
from sightline.engine.stats import BETWEEN_TOKENS, FIRST_TOKEN, LATENCY, STEP_TOKENS, TOKENS, VISION_STAGES
from sightline.errors import SightlineError
from sightline.server.metrics.endpoint import router
from sightline.server.metrics.mindie import Rates
from sightline.server.service import Service

# vLLM's own, as of 0.32, and ours; a counter's sample ends in _total.
GAUGES = {
    "num_requests_running",
    "num_requests_waiting",
    "num_requests_waiting_by_reason",
    "kv_cache_usage_perc",
}
GAUGES |= {"cache_config_info"}
COUNTERS = {
    "prompt_tokens",
    "prompt_tokens_cached",
    "generation_tokens",
    "request_success",
    "num_preemptions",
}
COUNTERS |= {"prefix_cache_queries", "prefix_cache_hits", "mm_cache_queries", "mm_cache_hits"}
COUNTERS |= {"admission_rejections"}
DRAFTS = {"spec_decode_num_drafts", "spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens"}
HISTOGRAMS = {"time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"}
HISTOGRAMS |= {"request_time_per_output_token_seconds", "request_queue_time_seconds"}
HISTOGRAMS |= {
    "request_inference_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
}
HISTOGRAMS |= {"request_prompt_tokens", "request_generation_tokens", "request_max_num_generation_tokens"}
HISTOGRAMS |= {"request_params_n", "request_params_max_tokens", "request_num_preemptions"}
HISTOGRAMS |= {"request_prefill_kv_computed_tokens", "iteration_tokens_total"}
VISION_COUNTERS = {"vision_tokens", "encoder_cache_queries", "encoder_cache_hits", "image_cache_queries"}
VISION_COUNTERS |= {"image_cache_hits", "steps", "step_seconds", "requests_received", "requests_refused"}
VISION_GAUGES = {"encoder_cache_bytes", "image_cache_bytes"}
VISION_HISTOGRAMS = {"media_fetch_seconds", "media_decode_seconds", "media_preprocess_seconds"}
VISION_HISTOGRAMS |= {"vision_encode_seconds"}
# Of MindIE's C++ sources.
MINDIE_COUNTERS = {
    "request_received",
    "request_success",
    "request_failed",
    "prompt_tokens",
    "generation_tokens",
}
MINDIE_COUNTERS |= {"num_preemptions"}
MINDIE_GAUGES = {
    "num_requests_running",
    "num_requests_waiting",
    "num_requests_swapped",
    "failed_request_perc",
}
MINDIE_GAUGES |= {"avg_prompt_throughput_toks_per_s", "avg_generation_throughput_toks_per_s"}
MINDIE_GAUGES |= {"npu_cache_usage_perc", "cpu_cache_usage_perc", "npu_prefix_cache_hit_rate"}
MINDIE_GAUGES |= {"all_radix_match_num", "npu_radix_match_hit_num"}
MINDIE_HISTOGRAMS = {"time_to_first_token_seconds", "time_per_output_token_seconds"}
MINDIE_HISTOGRAMS |= {"e2e_request_latency_seconds", "request_prompt_tokens", "request_generation_tokens"}


@pytest.fixture
def llm(tiny_folder: Any) -> Iterator[LLM]:
    llm = LLM(tiny_folder, dtype="fp32", device="cpu", max_num_seqs=4, num_speculative_tokens=2)
    yield llm
    llm.close()


def scraper(llm: LLM, **options: Any) -> TestClient:
    app = FastAPI()
    app.include_router(router(Service(llm, ["tiny", "other"]), **options))
    return TestClient(app)


def scrape(client: TestClient) -> dict[str, Any]:
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {family.name: family for family in text_string_to_metric_families(response.text)}


def value(families: dict[str, Any], name: str, sample: str = "", **labels: str) -> float:
    """The one sample that has these labels."""
    found = [
        one.value
        for one in families[name].samples
        if one.name == (sample or name) and labels.items() <= one.labels.items()
    ]
    assert len(found) == 1, (name, sample, labels, found)
    return float(found[0])


def total(families: dict[str, Any], name: str, **labels: str) -> float:
    return value(families, name, f"{name}_total", **labels)


def count(families: dict[str, Any], name: str) -> float:
    return value(families, name, f"{name}_count")


def test_every_name_is_there_with_its_type(llm: LLM) -> None:
    families = scrape(scraper(llm, mindie=True))
    expected = {
        "gauge": {f"vllm:{name}" for name in GAUGES} | {f"sightline:{name}" for name in VISION_GAUGES},
        "counter": {f"vllm:{name}" for name in COUNTERS | DRAFTS},
        "histogram": {f"vllm:{name}" for name in HISTOGRAMS},
    }
    expected["counter"] |= {f"sightline:{name}" for name in VISION_COUNTERS}
    expected["histogram"] |= {f"sightline:{name}" for name in VISION_HISTOGRAMS}
    expected["gauge"] |= MINDIE_GAUGES
    expected["counter"] |= MINDIE_COUNTERS
    expected["histogram"] |= MINDIE_HISTOGRAMS
    for kind, names in expected.items():
        ours = {
            name
            for name, family in families.items()
            if family.type == kind and not name.startswith(("process_", "python_"))
        }
        assert ours == names
    assert families["process_resident_memory_bytes"].type == "gauge"
    plain = scrape(scraper(llm))
    assert {
        name for name in plain if ":" not in name and not name.startswith(("process_", "python_"))
    } == set()


def test_labels_are_vllms(llm: LLM) -> None:
    families = scrape(scraper(llm, mindie=True))
    for name, family in families.items():
        for sample in family.samples:
            labels = set(sample.labels) - {"le", "finished_reason", "reason"}
            if name.startswith("vllm:") and name not in (
                "vllm:cache_config_info",
                "vllm:admission_rejections",
            ):
                assert labels == {"model_name", "engine"}, name
            if not name.startswith(("vllm:", "process_", "python_")):
                assert labels == {"model_name"}, name
            if "model_name" in labels:
                assert sample.labels["model_name"] == "tiny"
    config = families["vllm:cache_config_info"].samples[0]
    assert config.value == 1
    assert config.labels["num_gpu_blocks"] == str(llm.engine.stats().blocks_total)
    assert config.labels["block_size"] == str(llm.settings.block_size)


def test_numbers_are_what_requests_did(llm: LLM) -> None:
    client = scraper(llm, mindie=True, turned_away=lambda: {"max_open": 3})
    picture = Pillow.new("RGB", (64, 64), "red")
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "what shape is it? " * 8}]
    messages = [{"role": "user", "content": content}]
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    outputs = [llm.chat(messages, params)[0] for _ in range(2)]  # the second finds the first's blocks
    outputs += llm.generate(["a b", "c d"], SamplingParams(max_tokens=3, n=2, seed=1, ignore_eos=True))
    greedy = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    outputs += [llm.generate("what", greedy)[0] for _ in range(2)]
    stop = [outputs[-1].outputs[0].text[2]]
    outputs += llm.generate("what", replace(greedy, stop=stop))
    left = llm.stream("what", SamplingParams(temperature=0, max_tokens=1500, ignore_eos=True))
    next(iter(left))
    left.abort()
    aborted = left.result(60)
    with pytest.raises(SightlineError):
        llm.engine.add("a " * 5000, params).result(60)
    families = scrape(client)
    prompts = sum(len(output.prompt_token_ids) for output in [*outputs, aborted])
    answers = [answer for output in outputs for answer in output.outputs]
    made = sum(len(answer.token_ids) for answer in [*answers, *aborted.outputs])
    cached = sum(output.num_cached_tokens for output in [*outputs, aborted])
    assert total(families, "vllm:prompt_tokens") == prompts
    assert total(families, "vllm:prompt_tokens_cached") == cached > 0
    assert total(families, "vllm:generation_tokens") == made
    assert total(families, "sightline:vision_tokens") == sum(output.vision_tokens for output in outputs) > 0
    reasons = {"length": 8, "stop": 1, "abort": 1, "error": 0}
    for reason, number in reasons.items():
        assert total(families, "vllm:request_success", finished_reason=reason) == number
    assert total(families, "vllm:prefix_cache_hits") >= cached
    assert total(families, "vllm:mm_cache_queries") == 2
    assert total(families, "vllm:mm_cache_hits") == 1
    assert total(families, "vllm:admission_rejections", reason="max_open") == 3
    assert total(families, "vllm:admission_rejections", reason="engine_full") == 0
    # Requests that ended well: not the one that was left, nor the one that was refused.
    well = len(outputs)
    for name in (
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_inference_time_seconds",
    ):
        assert count(families, f"vllm:{name}") == well
    for name in ("request_prompt_tokens", "request_params_n", "request_params_max_tokens"):
        assert count(families, f"vllm:{name}") == well
    assert count(families, "vllm:time_to_first_token_seconds") == well + 1
    assert count(families, "vllm:request_generation_tokens") == len(answers)
    assert value(families, "vllm:request_params_n", "vllm:request_params_n_sum") == well + 2
    told = value(families, "vllm:request_prompt_tokens", "vllm:request_prompt_tokens_sum")
    assert told == prompts - len(aborted.prompt_token_ids)
    assert (
        value(families, "vllm:request_params_max_tokens", "vllm:request_params_max_tokens_sum")
        == 6 * 2 + 3 * 2 + 27
    )
    # A step that brings tokens is an interval, unless they are an answer's first.
    steps = count(families, "vllm:iteration_tokens_total")
    assert 0 < count(families, "vllm:inter_token_latency_seconds") <= made - len(answers) - 1
    assert steps == total(families, "sightline:steps")
    for name in VISION_HISTOGRAMS - {"media_preprocess_seconds"}:
        assert count(families, f"sightline:{name}") == 2
    # Each histogram is of its own stage.
    stages = {
        "e2e_request_latency": "total",
        "request_queue_time": "queue",
        "request_decode_time": "decode_time",
    }
    stages |= {"media_fetch": "fetch", "media_decode": "decode", "vision_encode": "encode"}
    stages |= {"media_preprocess": "preprocess"}
    for name, stage in stages.items():
        whole = next(one for one in families if one.endswith(f":{name}_seconds"))
        of = [output for output in outputs if output.vision_tokens or stage not in VISION_STAGES]
        took = sum(getattr(output.metrics, stage) for output in of)
        assert value(families, whole, f"{whole}_sum") == pytest.approx(took), name
    assert count(families, "sightline:media_preprocess_seconds") == well
    assert total(families, "sightline:encoder_cache_hits") + 1 >= 1
    assert total(families, "sightline:requests_refused") == 1
    assert total(families, "sightline:requests_received") == well + 2
    # MindIE's are the same numbers.
    assert total(families, "request_received") == well + 2
    assert total(families, "request_success") == 9
    assert total(families, "request_failed") == 1
    assert value(families, "failed_request_perc") == pytest.approx(1 / (well + 2))
    assert total(families, "prompt_tokens") == prompts
    hits, queries = value(families, "npu_radix_match_hit_num"), value(families, "all_radix_match_num")
    assert value(families, "npu_prefix_cache_hit_rate") == pytest.approx(hits / queries)
    assert hits == total(families, "vllm:prefix_cache_hits")
    assert value(families, "num_requests_swapped") == 0
    assert total(families, "vllm:spec_decode_num_draft_tokens") >= total(
        families, "vllm:spec_decode_num_accepted_tokens"
    )


def test_a_full_engine_is_counted(tiny_folder: Any) -> None:
    llm = LLM(tiny_folder, dtype="fp32", device="cpu", max_num_seqs=1, max_waiting=1)
    params = SamplingParams(max_tokens=1500, ignore_eos=True)
    streams = [llm.engine.add("a", params) for _ in range(2)]
    with pytest.raises(EngineFull):
        llm.engine.add("a", params)
    until = time.monotonic() + 30
    families: dict[str, Any] = {}
    while time.monotonic() < until:
        families = scrape(scraper(llm))
        if value(families, "vllm:num_requests_running") == 1:
            break
        time.sleep(0.01)
    assert total(families, "vllm:admission_rejections", reason="engine_full") == 1
    assert value(families, "vllm:num_requests_waiting") == 1
    assert value(families, "vllm:kv_cache_usage_perc") > 0
    by_reason = {
        sample.labels["reason"]: sample.value
        for sample in families["vllm:num_requests_waiting_by_reason"].samples
    }
    assert sum(by_reason.values()) == 1
    assert set(by_reason) == {"capacity", "deferred"}
    for stream in streams:
        stream.abort()
    for stream in streams:
        stream.result(30)
    assert value(scrape(scraper(llm)), "vllm:num_requests_running") == 0
    llm.close()


def test_adapters_are_told(tiny_folder: Any) -> None:
    from adapter_folders import adapter_of

    llm = LLM(
        tiny_folder,
        dtype="fp32",
        device="cpu",
        adapters={"words": adapter_of(tiny_folder, "words")},
        max_num_seqs=1,
    )
    params = SamplingParams(max_tokens=1500, ignore_eos=True)
    streams = [llm.engine.add("a", params, adapter="words") for _ in range(2)]
    streams[0].wait_opened(30), streams[1].wait_opened(30)
    labels = scrape(scraper(llm))["vllm:lora_requests_info"].samples[0].labels
    until = time.monotonic() + 60
    while labels["running_lora_adapters"] != "words":
        assert time.monotonic() < until
        time.sleep(0.01)
        labels = scrape(scraper(llm))["vllm:lora_requests_info"].samples[0].labels
    assert labels == {"max_lora": "8", "running_lora_adapters": "words", "waiting_lora_adapters": "words"}
    for stream in streams:
        stream.abort()
    llm.close()


def test_buckets_grow_while_requests_run(llm: LLM) -> None:
    client = scraper(llm, mindie=True)
    done = threading.Event()

    def ask() -> None:
        try:
            for number in range(12):
                settings = SamplingParams(max_tokens=12, seed=number, ignore_eos=True)
                llm.generate([f"{number} a b c"] * 4, settings)
        finally:
            done.set()

    thread = threading.Thread(target=ask)
    thread.start()
    before: dict[tuple[Any, ...], float] = {}
    scrapes = 0
    while not done.is_set() or scrapes < 3:
        families = scrape(client)
        scrapes += 1
        for family in families.values():
            if family.type == "histogram":
                _check_histogram(family)
            if family.type in ("histogram", "counter"):
                for sample in family.samples:
                    key = (sample.name, *sorted(sample.labels.items()))
                    assert sample.value >= before.get(key, 0), key
                    before[key] = sample.value
    thread.join()
    assert total(scrape(client), "vllm:generation_tokens") == 12 * 4 * 12


def _check_histogram(family: Any) -> None:
    buckets = [sample for sample in family.samples if sample.name.endswith("_bucket")]
    bounds = [float(sample.labels["le"]) for sample in buckets]
    counts = [sample.value for sample in buckets]
    assert bounds == sorted(set(bounds))
    assert bounds[-1] == math.inf
    assert counts == sorted(counts)
    assert counts[-1] == next(one.value for one in family.samples if one.name.endswith("_count"))


def test_bounds_hold_those_of_vllm_and_mindie() -> None:
    latency = {0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0}
    assert latency | {240.0, 480.0, 960.0, 1920.0, 7680.0} <= set(LATENCY)
    between = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0}
    assert between | {20.0, 40.0, 80.0} <= set(BETWEEN_TOKENS)
    assert {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0} <= set(FIRST_TOKEN)
    assert {2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0} <= set(FIRST_TOKEN)
    assert {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384} <= set(STEP_TOKENS)
    assert {1, 2, 5, 10, 20, 50, 100, 1000, 5000, 16000, 20000, 32000, 64000, 128000} <= set(TOKENS)
    for bounds in (LATENCY, BETWEEN_TOKENS, FIRST_TOKEN, STEP_TOKENS, TOKENS):
        assert list(bounds) == sorted(set(bounds))


def test_openmetrics_is_told_to_who_asks_for_it(llm: LLM) -> None:
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    response = scraper(llm, mindie=True).get("/metrics", headers={"accept": accept})
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    names = {family.name for family in openmetrics.text_string_to_metric_families(response.text)}
    assert {"vllm:prompt_tokens", "vllm:iteration_tokens_total", "time_to_first_token_seconds"} <= names


def test_rates_are_of_the_last_seconds() -> None:
    rates = Rates(window=0.05)
    assert rates.of(1000, 1000) == (0.0, 0.0)
    time.sleep(0.06)
    prompt, generation = rates.of(1100, 1000)
    assert 0 < prompt < 100 / 0.06
    assert generation == 0
    time.sleep(0.06)
    # The first look is let go: nothing has come since the second.
    assert rates.of(1100, 1000) == (0.0, 0.0)


def test_fetching_counts_from_the_requests_arrival(llm: LLM) -> None:
    class Slow:
        """A fetcher that takes its time."""

        @asynccontextmanager
        async def resolved(self, conversation: Conversation, **options: Any) -> AsyncIterator[Conversation]:
            await asyncio.sleep(0.3)
            yield conversation

    async def ask() -> None:
        service = Service(llm, ["tiny"], fetcher=Slow())
        shown = [Image(Pillow.new("RGB", (64, 64), "red")), Text("what?")]
        params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
        exchange = await service.submit(Conversation([Message("user", shown)]), params)
        metrics = (await exchange.finished()).metrics
        assert metrics.fetch >= 0.3
        assert metrics.preprocess >= 0.3
        assert metrics.time_to_first_token is not None
        assert metrics.time_to_first_token >= 0.3

    asyncio.run(ask())
    families = scrape(scraper(llm))
    for name in ("sightline:media_fetch_seconds", "vllm:time_to_first_token_seconds"):
        assert value(families, name, f"{name}_sum") >= 0.3
        assert count(families, name) == 1
