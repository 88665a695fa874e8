"""Penalties, biases and bans do to logits what transformers and OpenAI's definition do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_tokenizer

from sightline import SamplingParams
from sightline.engine.sampling.penalties import Change, apply
from sightline.engine.sampling.rules import Rules, bad_word_tokens


def changed(logits: torch.Tensor, rules: list[Rules]) -> torch.Tensor:
    logits = logits.clone()
    apply(logits, {row: Change.of(each) for row, each in enumerate(rules)})
    return logits


def rules_of(answer: list[int], prompt: list[int] | None = None, **given: Any) -> Rules:
    others = {name: given.pop(name) for name in ("ends", "bad_words") if name in given}
    rules = Rules(SamplingParams(max_tokens=None, **given), prompt=prompt or [], **others)
    for token in answer:
        rules.push(token)
    return rules


def test_repetition_is_that_of_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    torch.manual_seed(0)
    logits = torch.randn(2, 50) * 3
    prompt, answer = [3, 3, 9], [7, 9, 7]
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([prompt + answer]), logits[:1].clone())
    other = rules_of([1])
    found = changed(logits, [rules_of(answer, prompt, repetition_penalty=1.3), other])
    torch.testing.assert_close(found[:1], expected)
    torch.testing.assert_close(found[1:], logits[1:])


def test_presence_and_frequency_count_the_answer_only() -> None:
    logits = torch.zeros(2, 10)
    first = rules_of([4, 4, 5], [1, 2, 4], presence_penalty=0.5, frequency_penalty=0.25)
    second = rules_of([1], [2], frequency_penalty=-1.0, logit_bias={2: 3.0, 1: 0.5})
    found = changed(logits, [first, second])
    assert {place: value for place, value in enumerate(found[0].tolist()) if value} == {4: -1.0, 5: -0.75}
    assert {place: value for place, value in enumerate(found[1].tolist()) if value} == {1: 1.5, 2: 3.0}


def test_bans() -> None:
    logits = torch.arange(10.0)[None]
    late = rules_of([1], min_tokens=2, ends=[8, 9])
    assert changed(logits, [late]).isinf().nonzero()[:, 1].tolist() == [8, 9]
    late.push(1)
    assert late.quiet
    few = rules_of([], allowed_token_ids=[6, 2, 2])
    assert changed(logits, [few]).isfinite().nonzero()[:, 1].tolist() == [2, 6]
    words = [[3], [1, 2], [5, 1, 4], [7, 1, 6]]
    assert rules_of([], bad_words=words).banned() == [3]
    assert rules_of([5, 1], bad_words=words).banned() == [3, 2, 4]
    assert rules_of([1, 5], bad_words=words).banned() == [3]


def test_bad_words_are_those_at_a_start_and_after_a_space() -> None:
    tokenizer = make_tokenizer()
    found = [tokenizer.decode(ids) for ids in bad_word_tokens(["red", " box"], tokenizer)]
    assert found == ["red", " red", " box"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 200), max_size=150), st.lists(st.integers(0, 200), max_size=60), st.data())
def test_what_is_pushed_and_popped_leaves_no_trace(answer: list[int], extra: list[int], data: Any) -> None:
    """The table grows with the answer; kept up token by token it says what a fresh one says."""
    given = {
        "repetition_penalty": 1.1,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "logit_bias": {5: 1.0},
    }
    at = data.draw(st.integers(0, len(answer)))
    rules = rules_of(answer[:at], [1, 2], **given)
    for token in extra:
        rules.push(token)
    for _ in extra:
        rules.pop()
    for token in answer[at:]:
        rules.push(token)
    logits = torch.randn(1, 201, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(changed(logits, [rules]), changed(logits, [rules_of(answer, [1, 2], **given)]))


@pytest.mark.parametrize(("rows", "width"), [(1, 70), (5, 64), (40, 333), (40, 1000)])
def test_masks_bit_by_bit(rows: int, width: int) -> None:
    """Any share of the rows, more than are unpacked together, and widths that end within a byte or a word."""
    generator = np.random.default_rng(rows * width)
    words = generator.integers(-(2**31), 2**31, size=(rows, -(-width // 32)), dtype=np.int64).astype(np.int32)
    logits = torch.from_numpy(generator.normal(size=(rows, width)).astype(np.float32))
    for every in (1, 3):
        changes = {row: replace(Change.of(rules_of([])), mask=words[row]) for row in range(0, rows, every)}
        result = logits.clone()
        apply(result, changes)
        for row in range(rows):
            for token, (before, after) in enumerate(
                zip(logits[row].tolist(), result[row].tolist(), strict=True)
            ):
                allowed = row not in changes or int(words[row, token // 32]) >> (token % 32) & 1
                assert after == (before if allowed else -torch.inf)


def test_a_mask_hides_no_nan() -> None:
    logits = torch.tensor([[1.0, float("nan"), 2.0]])
    apply(logits, {0: replace(Change.of(rules_of([])), mask=np.array([1], np.int32))})
    assert torch.isnan(logits[0, 1])
