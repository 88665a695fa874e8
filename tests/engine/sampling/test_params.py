"""Settings are checked by name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sightline import SamplingParams
from sightline.engine.sampling.params import ParameterError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 0),
        ("n", 1.5),
        ("n", True),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_k", -2),
        ("top_k", 2.0),
        ("min_p", 1.1),
        ("repetition_penalty", 0),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("min_tokens", 17),
        ("stop", [""]),
        ("stop", [1]),
        ("stop_token_ids", ["a"]),
        ("seed", 2**70),
        ("stop", 5),
        ("stop_token_ids", 5),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -3),
        ("frequency_penalty", None),
        ("logprobs", 21),
        ("logprobs", True),
        ("prompt_logprobs", -2),
        ("logit_bias", {1: 101}),
        ("logit_bias", {-1: 1}),
        ("logit_bias", {"a": 1}),
        ("logit_bias", [1]),
        ("bad_words", [""]),
        ("bad_words", 3),
        ("allowed_token_ids", []),
        ("allowed_token_ids", [-1]),
        ("ignore_eos", 1),
        ("detokenize", None),
        ("include_stop_str_in_output", "no"),
    ],
)
def test_wrong_values_are_named(name: str, value: Any) -> None:
    with pytest.raises(ParameterError, match=name) as raised:
        SamplingParams(**{name: value})
    assert raised.value.name == name


def test_the_example_of_vllm_users() -> None:
    params = SamplingParams(
        temperature=0.1, top_p=0.001, repetition_penalty=1.05, max_tokens=256, stop_token_ids=[]
    )
    assert not params.greedy
    assert SamplingParams(stop="x").stops == ("x",)
    assert SamplingParams(temperature=0).greedy


def test_settings_are_kept_through_replace() -> None:
    params = SamplingParams(
        stop="x", logit_bias={"5": 1, 6: -2.5}, bad_words="no", allowed_token_ids=range(3), logprobs=-1
    )
    assert params.logit_bias == {5: 1.0, 6: -2.5}
    assert params.bad_words == ("no",)
    assert replace(params, temperature=0.5) == replace(params, temperature=0.5)
    assert replace(params, temperature=0.5).logit_bias == params.logit_bias
    assert hash(params) == hash(replace(params))


def test_stop_texts_need_a_text() -> None:
    with pytest.raises(ParameterError, match="stop needs the answer's text"):
        SamplingParams(stop="x", detokenize=False)


@pytest.mark.parametrize("name", ["stop_token_ids", "allowed_token_ids", "logit_bias"])
def test_ids_beyond_the_vocabulary(name: str) -> None:
    params = SamplingParams(**{name: {9: 1.0} if name == "logit_bias" else [9]})
    params.check_vocabulary(10)
    with pytest.raises(ParameterError, match=f"{name} must lie between 0 and 8"):
        params.check_vocabulary(9)
