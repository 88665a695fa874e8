"""Requests of several adapters in one batch: in float32 each has the tokens that PEFT gives it alone."""

from __future__ import annotations

import gc
import threading
import weakref
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_folders import KINDS, adapter_of, answer_with, folders_of, make_adapter
from exactness import QUESTIONS, TOKENS, Bench, bench
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from sightline import LLM, LoRARequest
from sightline.engine import runner
from sightline.engine.assembly import Parts, assemble, load
from sightline.engine.inputs import Prompt
from sightline.engine.sampling.params import SamplingParams
from sightline.engine.scheduling.request import Request
from sightline.engine.settings import EngineSettings
from sightline.errors import SightlineError, UsageError
from sightline.models.fast import text
from sightline.models.loading import load_model

NAMES = [None, *KINDS]
# Prompts that share beginnings and pictures.
ASKED = ("short", "text", "picture", "of one size", "twice", "both")
GREEDY = SamplingParams(temperature=0, max_tokens=TOKENS)


def path_of(base: Path, name: str | None) -> Path | None:
    return None if name is None else adapter_of(base, name)


@lru_cache(maxsize=200)
def expected(base: Path, adapter: str | None, question: str) -> tuple[list[int], list[int]]:
    """Prompt and answer of transformers, or of transformers and PEFT."""
    found = answer_with(base, path_of(base, adapter), question)
    assert found.margin > 2e-4, f"{question} with {adapter}: rounding may decide ({found.margin})"
    return found.prompt, found.tokens


@pytest.fixture(scope="module", params=("qwen2_vl", "qwen3_vl"))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import make_model_folder

    return make_model_folder(tmp_path_factory.mktemp("adapters") / request.param, request.param)


@lru_cache(maxsize=2)
def llm_of(base: Path) -> LLM:
    return LLM(base, dtype="fp32", device="cpu", adapters=folders_of(base))


def test_a_mixed_batch_is_each_adapter_alone(family_folder: Path) -> None:
    llm = llm_of(family_folder)
    asked = [(question, name) for question in ASKED for name in NAMES]
    outputs = llm.chat([QUESTIONS[q] for q, _ in asked], GREEDY, adapter=[name for _, name in asked])
    found = [(list(output.prompt_token_ids), output.outputs[0].token_ids) for output in outputs]
    assert found == [expected(family_folder, name, question) for question, name in asked]
    # Each changes the answers, so that no two are mixed up unseen.
    for question in ASKED:
        assert len({tuple(expected(family_folder, name, question)[1]) for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", KINDS)
def test_an_adapter_with_the_engine_to_itself(base: Path, name: str) -> None:
    llm = LLM(base, dtype="fp32", device="cpu", adapters={name: adapter_of(base, name)})
    outputs = llm.chat([QUESTIONS[question] for question in ASKED], GREEDY, adapter=name)
    found = [output.outputs[0].token_ids for output in outputs]
    assert found == [expected(base, name, question)[1] for question in ASKED]


# Schedules


@dataclass(frozen=True)
class Ask:
    question: str
    adapter: str | None
    length: int = TOKENS
    n: int = 1
    priority: int = 0


@dataclass(frozen=True)
class Abort:
    place: int


@dataclass(frozen=True)
class Steps:
    count: int


@dataclass(frozen=True)
class Schedule:
    events: tuple[Ask | Abort | Steps, ...]
    block_size: int = 16
    spare: int = 64
    seqs: int = 4
    tokens: int = 64
    features: int | None = None
    prefix: bool = True
    drafts: int = 0
    rounds: int = 1


def engine_of(own: Bench, schedule: Schedule) -> Parts:
    asks = [one for one in schedule.events if isinstance(one, Ask)] or [Ask("short", None)]
    longest = max(len(expected(own.folder, ask.adapter, ask.question)[0]) for ask in asks) + TOKENS
    blocks = max(2, -(-longest // schedule.block_size) + schedule.spare)
    row = runner.Runner.bytes_per_feature_row(own.model)
    return own.parts(
        adapters=folders_of(own.folder),
        block_size=schedule.block_size,
        kv_cache_memory_bytes=own.bytes_of(blocks, schedule.block_size),
        max_num_seqs=schedule.seqs,
        max_num_batched_tokens=max(schedule.seqs, schedule.tokens),
        encoder_cache_bytes=None if schedule.features is None else schedule.features * row,
        enable_prefix_caching=schedule.prefix,
        num_speculative_tokens=schedule.drafts,
        prompt_lookup_min=1,
    )


def play(own: Bench, schedule: Schedule) -> Parts:
    """Play a schedule and hold every answer to what PEFT gives it alone; aborted ones as far as they got."""
    parts = engine_of(own, schedule)
    for _ in range(schedule.rounds):
        asked: list[tuple[Ask, Request]] = []
        for one in schedule.events:
            if isinstance(one, Ask):
                params = SamplingParams(temperature=0, max_tokens=one.length, n=one.n)
                adapter = None if one.adapter is None else parts.adapters.get(one.adapter)
                request, preparation = parts.preparer.prepare(
                    Prompt(QUESTIONS[one.question]),
                    params,
                    request_id=str(len(asked)),
                    priority=one.priority,
                    adapter=adapter,
                )
                parts.core.add(request, preparation)
                asked.append((one, request))
            elif isinstance(one, Abort) and asked:
                parts.core.abort(asked[one.place % len(asked)][1].id)
            elif isinstance(one, Steps):
                for _ in range(one.count):
                    parts.core.step()
                    parts.core.check_integrity()
        while parts.core.has_work:
            parts.core.step()
            parts.core.check_integrity()
        for ask, request in asked:
            output = parts.core.output(request)
            assert output.error is None
            prompt, tokens = expected(own.folder, ask.adapter, ask.question)
            assert request.prompt == prompt
            for answer in output.outputs:
                found = list(answer.token_ids)
                wanted = tokens[: len(found) if answer.finish_reason == "abort" else ask.length]
                assert found == wanted, f"{ask}"
            parts.core.forget(request.id)
    return parts


asks = st.builds(
    Ask,
    question=st.sampled_from(ASKED),
    adapter=st.sampled_from(NAMES),
    length=st.sampled_from([1, 2, 7, TOKENS, TOKENS]),
    n=st.sampled_from([1, 1, 1, 2]),
    priority=st.sampled_from([0, 0, 0, 1, -1]),
)
schedules = st.builds(
    Schedule,
    events=st.lists(
        st.one_of(
            asks, asks, asks, st.builds(Steps, st.integers(1, 12)), st.builds(Abort, st.integers(0, 20))
        ),
        min_size=5,
        max_size=16,
    ).map(tuple),
    block_size=st.sampled_from([1, 3, 16]),
    spare=st.sampled_from([0, 0, 3, 64]),
    seqs=st.sampled_from([3, 6, 6]),
    tokens=st.sampled_from([1, 7, 16, 64]),
    features=st.sampled_from([0, 6, 20, None]),
    prefix=st.booleans(),
    drafts=st.sampled_from([0, 0, 3]),
    rounds=st.sampled_from([1, 2]),
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedule=schedules)
def test_any_schedule(base: Path, schedule: Schedule) -> None:
    totals = play(bench(base), schedule).core.totals
    event(f"preempted: {totals.preemptions > 0}")


EVERYTHING = tuple(
    one
    for place, (question, name) in enumerate((q, n) for q in ASKED for n in NAMES)
    for one in (Ask(question, name, n=1 + (place % 5 == 0), priority=-(place % 3)), Steps(place % 3))
)


def test_few_blocks_and_drafts(base: Path) -> None:
    schedule = Schedule(EVERYTHING, block_size=3, spare=2, seqs=6, tokens=23, drafts=3, features=20)
    totals = play(bench(base), schedule).core.totals
    assert totals.preemptions
    assert totals.accepted


def test_long_steps_that_are_computed_in_parts(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "_MOST_BYTES", 5 * 2 * 128 * 4)  # five rows of the tiny model's perceptron
    play(bench(base), Schedule(EVERYTHING, tokens=64, seqs=6))


def test_the_module_of_transformers_gives_the_same(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "can_rewrite", lambda language_model: False)
    play(bench(base), Schedule(EVERYTHING, block_size=3, spare=9, tokens=23, seqs=6))


def test_a_spread_model_with_parts_on_disk_gives_the_same(tiny_folder: Path, tmp_path: Path) -> None:
    device_map = {"": "cpu", "model.language_model.layers.0": "disk", "model.visual": "disk"}
    model = load_model(
        tiny_folder, device="cpu", dtype="fp32", device_map=device_map, offload_folder=tmp_path / "off"
    )
    assert model.spread
    chosen = EngineSettings.of(
        tiny_folder, dtype="fp32", device="cpu", kv_cache_memory_bytes=2**22, adapters=folders_of(tiny_folder)
    )
    parts = assemble(chosen, model)
    for name in NAMES:
        adapter = None if name is None else parts.adapters.get(name)
        request, _ = parts.preparer.prepare(Prompt(QUESTIONS["picture"]), GREEDY, adapter=adapter)
        parts.core.add(request)
    requests = [record.request for record in parts.core._records.values()]
    while parts.core.has_work:
        parts.core.step()
    found = [parts.core.output(request).outputs[0].token_ids for request in requests]
    assert found == [expected(tiny_folder, name, "picture")[1] for name in NAMES]


def test_a_tower_that_fails_fails_its_own_requests_only(tiny_folder: Path) -> None:
    llm = LLM(tiny_folder, dtype="fp32", device="cpu", adapters=folders_of(tiny_folder))

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such stone")

    object.__setattr__(llm._adapters.get("sight").tower, "forward", broken)
    outputs = llm.chat([QUESTIONS["picture"]] * len(NAMES), GREEDY, adapter=NAMES)
    for name, output in zip(NAMES, outputs, strict=True):
        if name == "sight":
            assert output.error is not None
            assert "no such stone" in output.error
        else:
            assert output.outputs[0].token_ids == expected(tiny_folder, name, "picture")[1]


def test_bfloat16_is_near_float32(tiny_folder: Path) -> None:
    """With weights in oneDNN's order, and the changes of three adapters in one product."""
    options: dict[str, Any] = {"device": "cpu", "adapters": folders_of(tiny_folder)}
    narrow = assemble(EngineSettings.of(tiny_folder, dtype="bf16", **options))
    wide = assemble(EngineSettings.of(tiny_folder, dtype="fp32", **options))
    base = prompt_scores(narrow, None, "both")
    for name in ("words", "sight"):
        found, exact = (prompt_scores(parts, name, "both") for parts in (narrow, wide))
        assert (found - exact).abs().mean() < 0.15
        assert (found - base).abs().mean() > 0.6


# Quantized bases


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_adapters_on_a_quantized_base(tiny_folder: Path, quantization: str) -> None:
    """As on the float weights that the integers stand for, up to what quantized inputs cost."""
    own = bench(tiny_folder)
    plain = own.parts(adapters=folders_of(tiny_folder), kv_cache_memory_bytes=2**22)
    few_bits = own.parts(
        adapters=folders_of(tiny_folder), kv_cache_memory_bytes=2**22, quantization=quantization
    )
    meant = replace(own.model, module=_dequantized(own, quantization))
    chosen = EngineSettings.of(
        tiny_folder,
        dtype="fp32",
        device="cpu",
        kv_cache_memory_bytes=2**22,
        adapters={"words": adapter_of(tiny_folder, "words")},
    )
    reference = assemble(chosen, meant)
    near = [prompt_scores(parts, "words", "text") for parts in (few_bits, reference)]
    other, changed = prompt_scores(plain, "words", "text"), prompt_scores(few_bits, None, "text")
    assert (near[0] - near[1]).abs().mean() < 0.1
    assert (changed - near[0]).abs().mean() > 0.5  # what the adapter does
    assert not torch.equal(other, near[0])


def _dequantized(own: Bench, quantization: str) -> Any:
    import copy

    from sightline.models.quantization.int4 import Int4Linear
    from sightline.models.quantization.linear import QuantizedLinear
    from sightline.models.quantization.module import quantize_module
    from sightline.models.quantization.weights import dequantize, unpack_int4

    module = copy.deepcopy(own.model.module)
    quantize_module(module, quantization)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, QuantizedLinear):
            weight = layer.plain_weight()
            weight = unpack_int4(weight) if isinstance(layer, Int4Linear) else weight
            plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            plain.weight.data = dequantize(weight, layer.weight_scale, torch.float32)
            if layer.bias is not None:
                plain.bias.data = layer.bias.float()
            module.set_submodule(name, plain)
    return module


def prompt_scores(parts: Parts, name: str | None, question: str) -> torch.Tensor:
    """Log probability of each prompt token but the first."""
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    adapter = None if name is None else parts.adapters.get(name)
    request, preparation = parts.preparer.prepare(Prompt(QUESTIONS[question]), params, adapter=adapter)
    parts.core.add(request, preparation)
    while parts.core.has_work:
        parts.core.step()
    scores = parts.core.output(request).prompt_logprobs
    assert scores is not None
    return torch.tensor([next(iter(top.values())).logprob for top in scores[1:] if top])


# Caches


def encoded_and_hit(llm: LLM, name: str | None, question: str) -> tuple[int, int]:
    """Media that a question encodes, and those whose features it finds."""
    before = llm.engine.stats().encoder_cache
    llm.chat(QUESTIONS[question], SamplingParams(temperature=0, max_tokens=1), adapter=name)
    after = llm.engine.stats().encoder_cache
    hits = after.hits - before.hits
    return after.queries - before.queries - hits, hits


def test_features_are_shared_exactly_where_the_tower_is(tiny_folder: Path) -> None:
    llm = LLM(tiny_folder, dtype="fp32", device="cpu", adapters=folders_of(tiny_folder))
    assert encoded_and_hit(llm, None, "picture") == (1, 0)
    assert encoded_and_hit(llm, "words", "picture") == (0, 1)
    assert encoded_and_hit(llm, "sight", "picture") == (1, 0)
    assert encoded_and_hit(llm, "whole", "picture") == (1, 0)
    kept = llm.engine.stats().image_cache
    # Base, words and sight cut the picture once; the pixel limits of `whole` are its own.
    assert (kept.queries, kept.hits) == (4, 2)


def test_pixel_limits_of_an_adapter_are_honoured(tiny_folder: Path) -> None:
    llm = llm_of(tiny_folder)
    tokens = [
        llm.chat(QUESTIONS["tall"], GREEDY, adapter=name)[0].vision_tokens for name in ("words", "whole")
    ]
    assert tokens[1] < tokens[0]
    assert tokens[1] * 28 * 28 <= 56 * 56


@pytest.mark.parametrize(("kind", "question"), [("words", "long"), ("sight", "twice")])
def test_a_name_that_comes_back_finds_nothing_of_the_old_weights(
    tiny_folder: Path, tmp_path: Path, kind: str, question: str
) -> None:
    llm = LLM(tiny_folder, dtype="fp32", device="cpu", adapters={"a": adapter_of(tiny_folder, kind)})
    first, again = (llm.chat(QUESTIONS[question], GREEDY, adapter="a")[0] for _ in range(2))
    assert again.num_cached_tokens > 0
    llm.engine.unload_adapter("a")
    other = make_adapter(tiny_folder, tmp_path / "other", seed=9, **KINDS[kind])
    llm.engine.load_adapter("a", other)
    second = llm.chat(QUESTIONS[question], GREEDY, adapter="a")[0]
    assert second.num_cached_tokens == 0
    assert second.outputs[0].token_ids == answer_with(tiny_folder, other, question).tokens
    assert second.outputs[0].token_ids != first.outputs[0].token_ids


# Coming and going


def test_loading_and_unloading_while_requests_run(tiny_folder: Path) -> None:
    llm = LLM(tiny_folder, dtype="fp32", device="cpu", adapters={"words": adapter_of(tiny_folder, "words")})
    long = SamplingParams(temperature=0, max_tokens=300, ignore_eos=True)
    running = llm.engine.add(Prompt(QUESTIONS["text"]), long, adapter="words")
    begun = threading.Event()
    reader = threading.Thread(target=lambda: [begun.set() for _ in running])
    reader.start()
    assert begun.wait(30)
    llm.engine.load_adapter("sight", adapter_of(tiny_folder, "sight"))
    weights = weakref.ref(llm._adapters.get("words"))
    llm.engine.unload_adapter("words")
    with pytest.raises(SightlineError, match="no adapter 'words'; loaded are: sight"):
        llm.engine.add(Prompt(QUESTIONS["text"]), GREEDY, adapter="words")
    asked = [(name, question) for name in (None, "sight") for question in ASKED]
    outputs = llm.chat([QUESTIONS[q] for _, q in asked], GREEDY, adapter=[name for name, _ in asked])
    assert [o.outputs[0].token_ids for o in outputs] == [expected(tiny_folder, *one)[1] for one in asked]
    output = running.result()
    reader.join()
    assert output.outputs[0].finish_reason == "length"
    assert output.outputs[0].token_ids[:TOKENS] == expected(tiny_folder, "words", "text")[1]
    del output
    llm.chat(QUESTIONS["short"], GREEDY)  # a step later nothing refers to the old step's requests
    gc.collect()
    assert weights() is None
    assert list(llm.engine.adapters) == ["sight"]


def test_an_adapter_leaves_memory_with_its_last_request_though_its_stream_is_kept(
    tiny_folder: Path, request: pytest.FixtureRequest
) -> None:
    llm = LLM(tiny_folder, dtype="fp32", device="cpu", adapters={"words": adapter_of(tiny_folder, "words")})
    weights = weakref.ref(llm._adapters.get("words"))
    gc.collect()
    gc.disable()  # it shall not be what frees them
    request.addfinalizer(gc.enable)
    streams = [llm.stream(QUESTIONS[question], GREEDY, adapter="words") for question in ASKED]
    streams[2].abort()
    llm.engine.unload_adapter("words")
    for stream in streams:
        stream.result()
    llm.chat(QUESTIONS["short"], GREEDY)  # a step later nothing refers to the old step's requests
    assert weights() is None


def test_what_is_told_of_an_adapter(tiny_folder: Path) -> None:
    infos = llm_of(tiny_folder).engine.adapters
    assert list(infos) == list(KINDS)
    words, sight, whole = infos.values()
    assert (words.name, words.path, words.rank) == ("words", adapter_of(tiny_folder, "words"), 4)
    assert "visual" not in words.targets
    assert "q_proj" in words.targets
    assert (sight.rank, whole.rank) == (5, 2)
    assert whole.targets == ("down_proj", "k_proj", "o_proj", "visual")
    assert 0 < words.bytes < sight.bytes < whole.bytes


# vLLM's words


def test_lora_requests_of_vllm(tiny_folder: Path) -> None:
    llm = LLM(tiny_folder, dtype="fp32", device="cpu", enable_lora=True, max_loras=2, max_lora_rank=16)
    asked = [LoRARequest("w", 1, str(adapter_of(tiny_folder, "words"))), None]
    found = [o.outputs[0].token_ids for o in llm.chat([QUESTIONS["text"]] * 2, GREEDY, lora_request=asked)]
    assert found == [expected(tiny_folder, name, "text")[1] for name in ("words", None)]
    again = llm.chat(QUESTIONS["text"], GREEDY, lora_request=LoRARequest("w", 1))
    assert again[0].outputs[0].token_ids == found[0]
    with pytest.raises(UsageError, match="is loaded from"):
        llm.chat(QUESTIONS["text"], GREEDY, lora_request=LoRARequest("w", 1, str(tiny_folder)))
    with pytest.raises(UsageError, match="two words for the same"):
        llm.chat(QUESTIONS["text"], GREEDY, adapter="w", lora_request=asked[0])
    with pytest.raises(UsageError, match="1 prompts but 2 adapters"):
        llm.chat(QUESTIONS["text"], GREEDY, lora_request=asked)
    with pytest.raises(UsageError, match="named by text or a LoRARequest, not int"):
        llm.chat(QUESTIONS["text"], GREEDY, adapter=3)  # type: ignore[arg-type]
    generated = llm.generate((text for text in ("a", "b")), GREEDY, adapter="w")
    assert len(generated) == 2


# Mistakes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"adapters": ["a"]}, "adapters must be a dict of names and folders, not list"),
        ({"adapters": {"a b": "x"}}, "'a b' cannot be the name of an adapter"),
        ({"adapters": {"": "x"}}, "cannot be the name"),
        ({"adapters": {"a": 1}}, "the adapter a must be a folder"),
        (
            {"adapters": {"a": "x", "b": "y"}, "max_adapters": 1},
            "there are 2 adapters, and max_adapters is 1",
        ),
        ({"adapters": {"a": "x"}, "adapter": "y"}, "give one of the two"),
        ({"max_adapters": 0}, "max_adapters must be at least 1"),
        ({"max_lora_rank": "8"}, "max_lora_rank must be a whole number"),
        ({"max_loras": 0}, "max_adapters must be at least 1"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as raised:
        EngineSettings.of("model", **options)
    assert words in str(raised.value)


def test_loading_that_cannot_be(tiny_folder: Path, tmp_path: Path) -> None:
    folder = adapter_of(tiny_folder, "words")
    llm = LLM(
        tiny_folder, dtype="fp32", device="cpu", adapters={"a": folder}, max_adapters=2, max_lora_rank=4
    )
    load_adapter = llm.engine.load_adapter
    with pytest.raises(UsageError, match="cannot be the name"):
        load_adapter("../a b", folder)
    with pytest.raises(UsageError, match="there is an adapter 'a' already"):
        load_adapter("a", folder)
    with pytest.raises(SightlineError, match="rank 5, above max_lora_rank 4"):
        load_adapter("b", adapter_of(tiny_folder, "sight"))
    with pytest.raises(SightlineError, match=r"no adapter_config\.json"):
        load_adapter("b", tmp_path)
    load_adapter("b", folder)  # what failed has left nothing behind
    with pytest.raises(UsageError, match="2 adapters are loaded, and max_adapters is 2"):
        load_adapter("c", folder)
    with pytest.raises(UsageError, match="no adapter 'c'"):
        llm.engine.unload_adapter("c")


def test_an_adapter_that_does_not_fit_into_memory(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sightline.hardware.accelerator import Accelerator
    from sightline.hardware.memory import Memory

    llm = LLM(tiny_folder, dtype="fp32", device="cpu")
    monkeypatch.setattr(Accelerator, "memory", lambda self: Memory(1000, 2000))
    with pytest.raises(SightlineError, match=r"the adapter w takes .* MiB, but cpu has 0 MiB free"):
        llm.engine.load_adapter("w", adapter_of(tiny_folder, "words"))


def test_an_engine_with_one_adapter_on_all_requests_loads_no_others(tiny_folder: Path) -> None:
    folder = adapter_of(tiny_folder, "words")
    parts = assemble(
        EngineSettings.of(tiny_folder, dtype="fp32", device="cpu", adapter=folder),
        load(EngineSettings.of(tiny_folder, dtype="fp32", device="cpu", adapter=folder)),
    )
    with pytest.raises(UsageError, match="started with one adapter on all requests"):
        parts.adapters.load("b", folder)
