"""Settings are checked by name, and the sampler draws from the right tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sightline import SamplingParams
from sightline.engine.sampler import choose
from sightline.engine.sampling import ParameterError
from sightline.errors import SightlineError


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


PROBABILITIES = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])


def drawn(count: int = 300, **settings: Any) -> set[int]:
    generator = torch.Generator().manual_seed(0)
    params = SamplingParams(**settings)
    logits = PROBABILITIES.log()
    return {choose(logits, params, seen=None, banned=(), generator=generator) for _ in range(count)}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"temperature": 0}, {1}),
        ({"temperature": 0.001}, {1}),
        ({"top_k": 2}, {1, 3}),
        ({"top_k": -1}, {0, 1, 2, 3, 4}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.69}, {1, 3}),
        ({"top_p": 0.71}, {1, 3, 4}),
        ({"top_p": 0.001}, {1}),
        ({"min_p": 0.3}, {1, 3, 4}),
        # The share of top_p is of what top_k leaves: 4/7 of two tokens.
        ({"top_k": 2, "top_p": 0.5}, {1}),
    ],
)
def test_what_can_be_drawn(settings: dict[str, Any], expected: set[int]) -> None:
    assert drawn(**settings) == expected


def test_extreme_settings_still_choose() -> None:
    generator, logits = torch.Generator(), torch.tensor([30.0, -30.0, 1.0])
    params = SamplingParams(repetition_penalty=1e-40, temperature=1e-4)
    seen = torch.tensor([0, 1])
    assert choose(logits, params, seen=seen, banned=[2], generator=generator) == 0


def test_frequencies_follow_the_probabilities() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, params = PROBABILITIES.log(), SamplingParams()
    tokens = [choose(logits, params, seen=None, banned=(), generator=generator) for _ in range(4000)]
    shares = torch.bincount(torch.tensor(tokens), minlength=5) / len(tokens)
    torch.testing.assert_close(shares, PROBABILITIES, atol=0.03, rtol=0)


def test_banned_and_seen_tokens() -> None:
    generator, logits = torch.Generator(), torch.tensor([3.0, 2.9, -1.0])
    params = SamplingParams(temperature=0)
    assert choose(logits, params, seen=None, banned=[0], generator=generator) == 1
    penalty = SamplingParams(temperature=0, repetition_penalty=1.1)
    assert choose(logits, penalty, seen=torch.tensor([0, 0, 2]), banned=(), generator=generator) == 1
    assert logits.tolist() == pytest.approx([3.0, 2.9, -1.0])


@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_nan_are_no_answer(temperature: float) -> None:
    logits, params = torch.tensor([1.0, float("nan"), 2.0]).half(), SamplingParams(temperature=temperature)
    with pytest.raises(SightlineError, match="nan in float16.*use dtype bf16 or fp32"):
        choose(logits, params, seen=None, banned=(), generator=torch.Generator())
