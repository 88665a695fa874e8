"""What ends an answer, and what its text is then."""

from __future__ import annotations

from typing import Any

import pytest
from tiny import make_tokenizer

from sightline import SamplingParams
from sightline.engine.outputs import Logprob
from sightline.engine.sampling.answer import Answer, Draws
from sightline.engine.sampling.sampler import Choice

END = make_tokenizer().eos_token_id


def ids_of(text: str) -> list[int]:
    return make_tokenizer()(text, add_special_tokens=False)["input_ids"]


def answer_of(tokens: list[int], limit: int = 100, **given: Any) -> Answer:
    params = SamplingParams(**{"max_tokens": limit, **given})
    answer = Answer(params, index=2, end_tokens=[END], limit=limit, tokenizer=make_tokenizer(), seed=0)
    for token in tokens:
        if not answer.accept(Choice(token)):
            break
    return answer


X = ids_of("x")[0]


@pytest.mark.parametrize(
    ("tokens", "given", "expected"),
    [
        ([*ids_of("a fox"), END, X], {}, ("a fox", "stop", None)),
        ([*ids_of("a fox"), END, X], {"ignore_eos": True, "limit": 100}, ("a foxx", None, None)),
        ([*ids_of("a"), X], {"stop_token_ids": [X]}, ("a", "stop", X)),
        (
            [*ids_of("a"), X],
            {"stop_token_ids": [X], "include_stop_str_in_output": True},
            ("ax", "stop", X),
        ),
        (ids_of("one two"), {"stop": ["e t", "zz"]}, ("on", "stop", "e t")),
        (
            ids_of("one two"),
            {"stop": "e t", "include_stop_str_in_output": True},
            ("one t", "stop", "e t"),
        ),
        ([X] * 9, {"limit": 3}, ("xxx", "length", None)),
        ([X] * 9, {"stop": "x", "min_tokens": 4}, ("xxx", "stop", "x")),
        ([*ids_of("图")[:1]], {"limit": 1}, ("", "length", None)),
        ([X, X], {"detokenize": False, "limit": 2}, ("", "length", None)),
        (
            [X, END],
            {"include_stop_str_in_output": True, "skip_special_tokens": False},
            ("x<|im_end|>", "stop", None),
        ),
    ],
)
def test_ends(tokens: list[int], given: dict[str, Any], expected: tuple[Any, ...]) -> None:
    output = answer_of(tokens, **given).output
    assert (output.text, output.finish_reason, output.stop_reason) == expected
    assert output.finished() == (output.finish_reason is not None)
    assert output.index == 2
    assert output.token_ids == tokens[: len(output.token_ids)]


def test_no_token_ends_in_an_error() -> None:
    answer = answer_of([X])
    assert not answer.accept(Choice(-1, fault="it cannot be"))
    assert answer.finished
    assert answer.error == "it cannot be"
    assert (answer.output.text, answer.output.finish_reason, answer.output.token_ids) == ("x", "error", [X])


def test_logprobs_are_collected_with_their_texts() -> None:
    answer = answer_of([], logprobs=1)
    other = ids_of("a")[0]
    for logprob in (-0.5, -1.25):
        answer.accept(Choice(X, logprob, {X: Logprob(logprob, 2), other: Logprob(-0.1, 1)}))
    output = answer.output
    assert output.cumulative_logprob == -1.75
    assert output.logprobs is not None
    assert [entry[other].decoded_token for entry in output.logprobs] == ["a", "a"]
    assert answer_of([X]).output.logprobs is None


def test_bans_before_min_tokens() -> None:
    answer = answer_of([X], min_tokens=2, stop_token_ids=[7])
    assert answer.rules.banned() == sorted([7, END])
    answer.accept(Choice(X))
    assert answer.rules.quiet


def test_draws_are_used_when_they_are_used() -> None:
    draws, same = Draws(-1), Draws(-1)
    first = draws.ahead(3)
    draws.use(1)
    assert draws.ahead(2) == first[1:]
    draws.use(2)
    same.use(0)
    assert same.ahead(4)[3:] == draws.ahead(1)
    assert Draws(1).ahead(1) != first[:1]
