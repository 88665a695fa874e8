"""Answers keep their form in any company, and what is asked for one is nothing to the others."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_parts import RuleRunner, make_core
from exactness import ask, picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import make_tokenizer

from sightline import LLM, SamplingParams, StructuredOutputsParams
from sightline.data.conversation import Image, Text
from sightline.engine.sampling.answer import Answer
from sightline.engine.sampling.params import ParameterError
from sightline.engine.sampling.structured.compiler import Compiler
from sightline.engine.sampling.structured.matcher import Matcher
from sightline.engine.scheduling.request import Request

ENDLESS = {"type": "integer", "multipleOf": 99999989}
COLORS = ("red", "green", "blue \U0001f600")
PERSON = {
    "type": "object",
    "properties": {
        "color": {"enum": list(COLORS)},
        "count": {"type": "integer", "minimum": -20, "maximum": 300},
        "sure": {"type": "boolean"},
        "words": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2},
    },
    "required": ["color", "count", "sure", "words"],
    "additionalProperties": False,
}
QUESTIONS = [
    ask(Text("what shape is in the image?")),
    ask(Image(picture(64, 64, 1)), Text("is it red?")),
    ask(Text("describe the picture " * 8)),
]


@pytest.fixture(scope="module")
def llm(tiny_folder: Path) -> Iterator[LLM]:
    made = LLM(tiny_folder, dtype="fp32", device="cpu", max_num_seqs=4)
    yield made
    made.close()


def form(**given: Any) -> StructuredOutputsParams:
    return StructuredOutputsParams(**given)


def fits(schema: Any, value: Any) -> bool:
    """The part of JSON Schema that these tests use."""
    if "enum" in schema:
        return any(value == one and type(value) is type(one) for one in schema["enum"])
    kind = schema["type"]
    if kind == "boolean":
        return isinstance(value, bool)
    if kind == "null":
        return value is None
    if kind == "integer":
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and schema.get("minimum", value) <= value <= schema.get("maximum", value)
    if kind == "string":
        return isinstance(value, str) and len(value) <= schema.get("maxLength", len(value))
    if kind == "array":
        items = isinstance(value, list) and all(fits(schema["items"], item) for item in value)
        return items and schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
    if not isinstance(value, dict) or not set(schema.get("required", ())) <= set(value):
        return False
    known = schema["properties"]
    return all(name in known and fits(known[name], item) for name, item in value.items())


def test_the_check_of_these_tests_can_fail() -> None:
    good = {"color": "red", "count": 3, "sure": True, "words": ["a"]}
    assert fits(PERSON, good)
    wrong: list[dict[str, Any]] = [
        {"color": "pink"},
        {"count": 400},
        {"sure": 1},
        {"words": ["abcde"]},
        {"x": 1},
    ]
    for change in wrong:
        assert not fits(PERSON, good | change)


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0}, {"top_k": 20}, {"top_p": 0.9}, {"ignore_eos": True}]
)
def test_a_schema_is_kept(llm: LLM, options: dict[str, Any]) -> None:
    params = SamplingParams(n=4, max_tokens=90, seed=3, structured_outputs=form(json=PERSON), **options)
    ended = 0
    for output in llm.chat(QUESTIONS[:2], params):
        assert output.error is None
        for answer in output.outputs:
            if answer.finish_reason == "stop":
                assert fits(PERSON, json.loads(answer.text)), answer.text
                ended += 1
            else:
                assert answer.finish_reason == "length"
    assert ended >= (0 if options.get("temperature") == 0 else 4)


scalars = st.sampled_from(
    [
        {"type": "boolean"},
        {"type": "null"},
        {"type": "integer", "minimum": -5, "maximum": 12},
        {"type": "string", "maxLength": 3},
        {"enum": ["a", 'b"\\', 7, None, "\u65e5\u672c \U0001f600"]},
    ]
)


def grown(below: Any) -> Any:
    listed = st.builds(
        lambda items, most: {"type": "array", "items": items, "minItems": 1, "maxItems": most},
        below,
        st.integers(1, 2),
    )
    named = st.dictionaries(st.sampled_from(["a", "b c", "\u00e9", 'q"']), below, min_size=1, max_size=3)
    return listed | named.map(
        lambda names: {
            "type": "object",
            "properties": names,
            "required": list(names),
            "additionalProperties": False,
        }
    )


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=st.recursive(scalars, grown, max_leaves=4), seed=st.integers(0, 1000), blanks=st.booleans())
def test_any_schema_is_kept(llm: LLM, schema: dict[str, Any], seed: int, blanks: bool) -> None:
    wanted = form(json=schema, disable_any_whitespace=not blanks)
    params = SamplingParams(n=3, max_tokens=80, seed=seed, structured_outputs=wanted)
    for answer in llm.chat(QUESTIONS[:1], params)[0].outputs:
        assert answer.finish_reason in ("stop", "length")
        if answer.finish_reason == "stop":
            value = json.loads(answer.text)
            assert fits(schema, value), answer.text
            if not blanks:
                assert not re.search(r"\s", re.sub(r'"([^"\\]|\\.)*"', "", answer.text))


def test_choices_regular_expressions_and_grammars(llm: LLM) -> None:
    wanted = [
        (form(choice=COLORS), "|".join(COLORS)),
        (form(regex=r"[A-Z][a-z]{1,4} (\d{2}|x)!?"), r"[A-Z][a-z]{1,4} (\d{2}|x)!?"),
        (form(grammar='root ::= "is " word\nword ::= "it" | "in" [0-9]'), "is (it|in[0-9])"),
        (form(grammar='start: A ("," A)~1..2\nA: "the" | "fox"'), "(the|fox)(,(the|fox)){1,2}"),
    ]
    found: set[str] = set()
    for one, pattern in wanted:
        params = SamplingParams(n=16, max_tokens=40, seed=1, structured_outputs=one)
        for answer in llm.chat(QUESTIONS[:1], params)[0].outputs:
            assert re.fullmatch(pattern, answer.text), answer.text
            assert answer.finish_reason == "stop"
            assert answer.stop_reason is None
            found.add(answer.text)
    assert set(COLORS) <= found  # each of the three comes among sixteen


def test_json_object_is_an_object(llm: LLM) -> None:
    params = SamplingParams(n=8, max_tokens=100, seed=5, structured_outputs=form(json_object=True))
    answers = llm.chat(QUESTIONS[:1], params)[0].outputs
    assert any(answer.finish_reason == "stop" for answer in answers)
    for answer in answers:
        assert answer.text.startswith("{")
        if answer.finish_reason == "stop":
            assert isinstance(json.loads(answer.text), dict)


def test_neighbours_are_unchanged(llm: LLM) -> None:
    """Free answers beside ones with a form, and those beside free ones, are what they are alone."""
    free = [
        SamplingParams(max_tokens=20, seed=1, logprobs=3),
        SamplingParams(max_tokens=20, temperature=0, repetition_penalty=1.2),
        SamplingParams(max_tokens=20, seed=2, top_p=0.8, logit_bias={40: 3}),
    ]
    held = [
        SamplingParams(max_tokens=40, seed=4, structured_outputs=form(json=PERSON), logprobs=2),
        SamplingParams(max_tokens=40, temperature=0, structured_outputs=form(choice=COLORS)),
        SamplingParams(max_tokens=40, seed=9, top_k=9, structured_outputs=form(regex="[a-z ]{9,}")),
    ]
    alone = [llm.chat(question, one)[0].outputs[0] for one in (*free, *held) for question in QUESTIONS[:2]]
    questions, params = QUESTIONS[:2] * 6, [one for one in (*free, *held) for _ in range(2)]
    together = [output.outputs[0] for output in llm.chat(questions, params)]
    for one, other in zip(alone, together, strict=True):
        assert one.token_ids == other.token_ids
        assert one.text == other.text
        for here, there in zip(one.logprobs or [], other.logprobs or [], strict=True):
            assert list(here) == list(there)
            assert all(here[token].logprob == pytest.approx(there[token].logprob, abs=1e-4) for token in here)


def test_logprobs_are_the_models_own(llm: LLM) -> None:
    plain = SamplingParams(max_tokens=1, temperature=0, logprobs=-1)
    whole = llm.chat(QUESTIONS[0], plain)[0].outputs[0].logprobs
    held = SamplingParams(max_tokens=1, temperature=0, logprobs=2, structured_outputs=form(choice=["yes"]))
    answer = llm.chat(QUESTIONS[0], held)[0].outputs[0]
    assert whole is not None
    assert answer.logprobs is not None
    token = answer.token_ids[0]
    assert answer.logprobs[0][token].logprob == pytest.approx(whole[0][token].logprob, abs=1e-6)
    assert answer.logprobs[0][token].rank > 1  # or this shows nothing


def test_speculation_changes_nothing(tiny_folder: Path, llm: LLM) -> None:
    guessing = LLM(tiny_folder, dtype="fp32", device="cpu", max_num_seqs=4, num_speculative_tokens=4)
    try:
        repeated = ask(Text('[{"color": "red", "count": 1}, {"color": "red", "count": 1}, ' * 4))
        wanted = {
            "type": "array",
            "items": {"enum": ["red", "red red", "fox"]},
            "minItems": 12,
            "maxItems": 12,
        }
        for options in ({"temperature": 0}, {"seed": 3}, {"seed": 4, "top_k": 5, "repetition_penalty": 0.7}):
            params = [
                SamplingParams(max_tokens=100, structured_outputs=one, **options)
                for one in (
                    form(json=wanted),
                    form(json=PERSON),
                    form(regex="(the (quick|brown) fox ?){9,20}"),
                    None,
                )
            ]
            found = [
                [(answer.token_ids, answer.finish_reason) for answer in output.outputs]
                for engine in (llm, guessing)
                for output in engine.chat([repeated] * 4, params)
            ]
            assert found[:4] == found[4:]
        assert guessing.engine.stats().totals.steps < llm.engine.stats().totals.steps
    finally:
        guessing.close()


def test_preemption_changes_nothing() -> None:
    """Answers that lose their blocks and are computed again go on in their form where they were."""
    compiler = Compiler(make_tokenizer(), 300, frozenset({2}))
    grammar = compiler.compile(
        form(json={"type": "array", "items": {"enum": ["red", "fox", "the"]}, "minItems": 6})
    )
    compiler.close()
    tokenizer = make_tokenizer()

    def run(blocks: int) -> tuple[list[list[int]], int]:
        core = make_core(RuleRunner(), blocks=blocks, enable_prefix_caching=False)
        requests = []
        for number in range(4):
            params = SamplingParams(max_tokens=40, seed=number)
            answers = [
                Answer(
                    params,
                    end_tokens={2},
                    limit=40,
                    tokenizer=tokenizer,
                    seed=number,
                    structure=Matcher(grammar),
                )
            ]
            requests.append(Request(str(number), [5 + number] * 6, params, answers, limit=40))
            core.add(requests[-1])
        while core.has_work:
            core.step()
        for request in requests:
            answer = request.sequences[0].answer
            assert answer.finished
            if answer.output.finish_reason == "stop":
                assert set(json.loads(answer.output.text)) <= {"red", "fox", "the"}
        return [request.sequences[0].answer.output.token_ids for request in requests], core.totals.preemptions

    calm, none = run(200)
    tight, some = run(22)
    assert none == 0
    assert some > 0
    assert calm == tight


def test_other_settings_within_a_form(llm: LLM) -> None:
    tokenizer = llm.get_tokenizer()
    letter = tokenizer.encode("a", add_special_tokens=False)[0]

    def text(wanted: StructuredOutputsParams, **options: Any) -> tuple[str, str | None]:
        given = {"max_tokens": 12, "seed": 1, **options}
        answer = llm.chat(QUESTIONS[0], SamplingParams(structured_outputs=wanted, **given))[0].outputs[0]
        return answer.text, answer.finish_reason

    some = form(regex="[a-c]{1,9}")
    assert len(text(some, min_tokens=7)[0]) >= 7
    assert len(text(some, ignore_eos=True)[0]) == 9
    assert text(form(choice=["a"]), min_tokens=9, max_tokens=9) == ("a", "stop")
    assert text(form(choice=["a"]), max_tokens=1) == ("a", "stop")  # complete, not cut
    assert text(form(regex="a{30}"), max_tokens=4) == ("aaaa", "length")
    assert text(form(regex="[a-c]{9}"), allowed_token_ids=[letter]) == ("a" * 9, "stop")
    assert text(form(regex="[ab]{9}"), bad_words=["b"]) == ("a" * 9, "stop")
    assert text(form(regex="[ab]{9}"), logit_bias={letter: 100}) == ("a" * 9, "stop")
    assert text(form(regex="(a|b)c[a-c]{7}"), stop=["c"])[0] in ("a", "b")
    assert text(form(choice=["abc"]), detokenize=False) == ("", "stop")


def test_a_form_that_nothing_can_follow(llm: LLM) -> None:
    params = SamplingParams(structured_outputs=form(choice=["fox"]), allowed_token_ids=[9])
    output = llm.chat(QUESTIONS[0], params)[0]
    assert output.outputs[0].finish_reason == "error"
    assert "what structured_outputs allows is ruled out by allowed_token_ids" in str(output.error)


def test_what_cannot_be_compiled_is_an_error_of_the_stream(llm: LLM) -> None:
    params = SamplingParams(structured_outputs=form(regex="(?=a)b"))
    with pytest.raises(
        ParameterError, match="structured_outputs.regex cannot be used: look-around"
    ) as caught:
        llm.chat(QUESTIONS[0], params)
    assert caught.value.name == "structured_outputs.regex"
    with pytest.raises(ParameterError, match=r"prompts\[1\]: structured_outputs.regex cannot be used"):
        llm.chat(QUESTIONS[:2], [SamplingParams(), params])
    stream = llm.stream(QUESTIONS[0], params)
    with pytest.raises(ParameterError):
        stream.wait_opened(20)

    async def read() -> None:
        async for _ in llm.stream(QUESTIONS[0], params):
            pass

    with pytest.raises(ParameterError):
        asyncio.run(read())


@pytest.mark.parametrize("in_turn", [True, False])
def test_others_go_on_while_one_is_compiled(llm: LLM, in_turn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Giving returns at once; free requests and other forms overtake; it is refused in time."""
    from sightline.engine.async_engine import AsyncEngine

    engine = AsyncEngine(llm.engine._core, llm._preparer, in_turn=in_turn)
    monkeypatch.setattr(llm._preparer.grammars, "_seconds", 2.5)
    multiple = {"type": "integer", "multipleOf": 99999989 - 20 * in_turn}
    begun = time.perf_counter()
    hostile = engine.add(QUESTIONS[0], SamplingParams(structured_outputs=form(json=multiple)))
    assert time.perf_counter() - begun < 2
    free = engine.add(QUESTIONS[0], SamplingParams(max_tokens=5, seed=1))
    held = engine.add(
        QUESTIONS[0], SamplingParams(structured_outputs=form(regex=f"[ab]c{{{2 + in_turn}}}"), max_tokens=9)
    )
    assert len(free.result(20).outputs[0].token_ids) >= 1
    assert held.result(20).outputs[0].finish_reason == "stop"
    assert not hostile.ended
    assert engine.stats().preparing == 1
    longest = 0.0
    while not hostile.ended:  # it shows that it lives, though it has nothing to do
        longest = max(longest, engine.stalled())
        time.sleep(0.02)
    assert longest < 1.9
    with pytest.raises(ParameterError, match="takes more than 2.5 s to compile"):
        hostile.result(30)
    assert time.perf_counter() - begun < 25
    engine.close()


def test_a_request_can_be_aborted_while_it_is_compiled(tiny_folder: Path) -> None:
    llm = LLM(tiny_folder, dtype="fp32", device="cpu", max_num_seqs=2)
    llm._preparer.grammars._seconds = 0.8
    try:
        stream = llm.stream(QUESTIONS[0], SamplingParams(structured_outputs=form(json=ENDLESS)))
        time.sleep(0.3)
        stream.abort()
        assert stream.result(1).outputs[0].finish_reason == "abort"
        assert llm.engine.stats().preparing == 0
        while llm.engine._line.preparing:  # it is found to take too long when nobody waits for it any more
            time.sleep(0.02)
        assert llm.engine._open == 0
        later = llm.stream(QUESTIONS[0], SamplingParams(max_tokens=3))
        assert later.result(20).outputs[0].token_ids
        llm._preparer.grammars._seconds = 60.0
        other = {**ENDLESS, "multipleOf": 99999971}
        waiting = llm.stream(QUESTIONS[0], SamplingParams(structured_outputs=form(json=other)))
        begun = time.perf_counter()
    finally:
        llm.close()
    # Closing waits neither for what is compiled nor leaves its reader waiting.
    assert waiting.result(1).outputs[0].finish_reason == "abort"
    assert time.perf_counter() - begun < 3
    assert all(trial._process is None for trial in llm._preparer.grammars._all)
