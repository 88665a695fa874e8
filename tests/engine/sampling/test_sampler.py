"""Tokens are drawn from the right set with the right shares, whatever runs beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_tokenizer

from sightline import SamplingParams
from sightline.engine.sampling import draw
from sightline.engine.sampling.answer import Answer
from sightline.engine.sampling.logprobs import prompt_logprobs
from sightline.engine.sampling.sampler import Choice, Sampler

PROBABILITIES = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])


def answer_of(
    seed: int = 0, prompt: tuple[int, ...] = (), ends: tuple[int, ...] = (), **given: Any
) -> Answer:
    params = SamplingParams(**{"max_tokens": None, **given})
    return Answer(
        params, end_tokens=ends, limit=10_000, tokenizer=make_tokenizer(), prompt_tokens=prompt, seed=seed
    )


def chosen(logits: torch.Tensor, answers: list[Answer]) -> list[int]:
    return [choice.token for choice in Sampler(logits.shape[1], "cpu").choose(logits, answers)]


def drawn(count: int, logits: torch.Tensor, **settings: Any) -> list[int]:
    answer, sampler = answer_of(**settings), Sampler(len(logits), "cpu")
    return [sampler.choose(logits[None], [answer])[0].token for _ in range(count)]


def expected_weights(logits: torch.Tensor, params: SamplingParams) -> np.ndarray[Any, Any]:
    """The definition: everything sorted, equal ones by id, each setting keeps a beginning."""
    scaled = logits.double().numpy() / params.temperature
    weights = np.exp(scaled - scaled.max())
    order = np.argsort(-scaled, kind="stable")
    ordered = weights[order]
    ordered = np.where(ordered < params.min_p, 0, ordered)
    if params.top_k > 0:
        ordered[params.top_k :] = 0
    if params.top_p < 1:
        sums = ordered.cumsum()
        behind = sums - ordered >= params.top_p * sums[-1]
        behind[0] = False
        ordered[behind] = 0
    result = np.zeros_like(weights)
    result[order] = ordered
    return result / result.sum()


@pytest.mark.parametrize(
    ("given", "expected"),
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
def test_what_can_be_drawn(given: dict[str, Any], expected: set[int]) -> None:
    assert set(drawn(300, PROBABILITIES.log(), **given)) == expected


SETTINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"top_p": 0.9},
    {"top_p": 0.5, "temperature": 1.4},
    {"top_k": 7},
    {"top_k": 50, "top_p": 0.8},
    {"min_p": 0.2},
    {"min_p": 0.05, "top_k": 30, "top_p": 0.95, "temperature": 0.8},
    {"top_k": 1500, "top_p": 0.97},
]


@pytest.mark.parametrize("given", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_drawn_is_in_the_set_of_the_definition(given: dict[str, Any], dtype: torch.dtype) -> None:
    """bfloat16 makes equal logits by the dozen: of those at the border the first by id count."""
    torch.manual_seed(len(str(given)))
    logits = (torch.randn(40, 3000) * torch.linspace(0.05, 4, 40)[:, None]).to(dtype)
    answers = [answer_of(seed, **given) for seed in range(40)]
    found = [chosen(logits, answers) for _ in range(5)]
    for row, answer in enumerate(answers):
        weights = expected_weights(logits[row], answer.params)
        assert all(weights[tokens[row]] > 0 for tokens in found)


@pytest.mark.parametrize("given", SETTINGS)
def test_numbers_reach_all_of_the_set(given: dict[str, Any]) -> None:
    """The first and last number, and those around each token's borders: the whole set and nothing else."""
    torch.manual_seed(1)
    logits = (torch.randn(1, 2500) * 3).bfloat16()
    answer, sampler = answer_of(**given), Sampler(2500, "cpu")
    weights = expected_weights(logits[0], answer.params)
    numbers = np.linspace(0, 1 - 2.0**-53, 1001)
    answers = [answer_of(**given) for _ in numbers]
    for number, each in zip(numbers, answers, strict=True):
        each.draws._numbers = [float(number)]
    tokens = [choice.token for choice in sampler.choose(logits.expand(len(numbers), -1), answers)]
    shares = np.bincount(tokens, minlength=2500) / len(numbers)
    # Evenly spaced numbers give each token its share to within a step.
    assert np.abs(shares - weights).max() <= 1.5 / 1000
    assert set(np.flatnonzero(shares)) <= set(np.flatnonzero(weights))


class Held:
    """Stands for a `Matcher` that allows the same tokens at every place."""

    astray, error = False, None

    def __init__(self, tokens: list[int], width: int, only_ends: bool = False) -> None:
        self.only_ends, self.complete = only_ends, False
        bits = np.zeros(-(-width // 32) * 32, np.bool_)
        bits[tokens] = True
        self._words = np.packbits(bits, bitorder="little").view(np.int32)

    def mask(self, *, ends: bool = True) -> tuple[Any, bool]:
        return self._words, self.only_ends

    def push(self, token: int) -> None:
        self.astray = True


def test_nothing_forbids_the_end_of_a_form() -> None:
    """Where only an end may come it comes, and ends the answer, also where every other setting is against it."""
    logits = torch.randn(1, 3000)
    against = {"min_tokens": 9, "allowed_token_ids": [7], "ignore_eos": True, "logit_bias": {4: -100}}
    for temperature in (0, 1):
        answer = answer_of(ends=(4,), temperature=temperature, **against)
        answer._ends = frozenset({4})  # as with a form from the start
        answer.rules.structure = Held([4], 3000, only_ends=True)  # type: ignore[assignment]
        choice = Sampler(3000, "cpu").choose(logits, [answer])[0]
        assert (choice.token, choice.fault) == (4, None)
        assert not answer.accept(choice)
        assert answer.output.finish_reason == "stop"


def test_a_form_knows_the_ends_that_a_request_ignores() -> None:
    params = SamplingParams(ignore_eos=True)
    held: Any = Held([4], 3000, only_ends=True)
    answer = Answer(params, end_tokens={4}, limit=9, tokenizer=make_tokenizer(), seed=0, structure=held)
    assert not answer.accept(Choice(4))
    assert answer.output.finish_reason == "stop"
    astray = Answer(params, end_tokens={4}, limit=9, tokenizer=make_tokenizer(), seed=0, structure=held)
    assert not astray.accept(Choice(8))
    assert astray.output.finish_reason == "error"
    assert "left the form" in str(astray.error)


@pytest.mark.parametrize("count", [1, 5, 900, 2000])
@pytest.mark.parametrize("given", [*SETTINGS, {"temperature": 0}, {"temperature": 0.05}])
def test_what_a_form_forbids_has_no_share(given: dict[str, Any], count: int) -> None:
    """Among what is allowed, all is as if the rest of the vocabulary did not exist."""
    width, generator = 2501, np.random.default_rng(count)
    torch.manual_seed(count)
    logits = (torch.randn(1, width) * 3).bfloat16()
    tokens = sorted(generator.choice(width, count, replace=False).tolist())
    masked = torch.full_like(logits, -torch.inf)
    masked[0, tokens] = logits[0, tokens]
    answers = []
    for number in np.linspace(0, 1 - 2.0**-53, 201):
        answers.append(answer_of(**given))
        answers[-1].rules.structure = Held(tokens, width)  # type: ignore[assignment]
        answers[-1].draws._numbers = [float(number)]
    found = [
        choice.token for choice in Sampler(width, "cpu").choose(logits.expand(len(answers), -1), answers)
    ]
    if answers[0].params.greedy:
        assert set(found) == {int(masked[0].float().argmax())}
        return
    weights = expected_weights(masked[0], answers[0].params)
    shares = np.bincount(found, minlength=width) / len(answers)
    assert np.abs(shares - weights).max() <= 2.1 / 200
    assert set(np.flatnonzero(shares)) <= set(np.flatnonzero(weights))


@pytest.mark.parametrize("given", [{}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.1, "temperature": 1.5}])
def test_frequencies_follow_the_probabilities(given: dict[str, Any]) -> None:
    logits, count = torch.tensor([1.0, 0.2, -1.0, 2.0, 1.5, 0.0, -3.0]), 4000
    tokens = drawn(count, logits, seed=1, **given)
    weights = expected_weights(logits, SamplingParams(**given))
    kept = weights > 0
    observed = np.bincount(tokens, minlength=len(logits))
    assert observed[~kept].sum() == 0
    chi = ((observed - count * weights)[kept] ** 2 / (count * weights[kept])).sum()
    assert chi < 25  # above it less than once in a thousand for up to 7 tokens


def test_the_most_likely_of_long_rows() -> None:
    torch.manual_seed(2)
    for width in (5, 2047, 2048, 5000, 8192):
        logits = torch.randn(9, width).bfloat16()
        logits[0] = 1.0  # all equal: the first
        logits[1, -1] = 50
        expected = [int(np.argmax(row.float().numpy())) for row in logits]
        assert chosen(logits, [answer_of(temperature=0)] * 9) == expected


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_neighbours_do_not_matter(data: st.DataObject) -> None:
    kinds = [
        *SETTINGS,
        {"temperature": 0},
        {"temperature": 0, "repetition_penalty": 1.2},
        {"logit_bias": {3: 5}},
    ]
    picks = data.draw(st.lists(st.sampled_from(range(len(kinds))), min_size=1, max_size=8))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    logits = (torch.randn(len(picks), 2100) * 3).bfloat16()
    together = chosen(
        logits, [answer_of(row, prompt=(1, 2), **kinds[kind]) for row, kind in enumerate(picks)]
    )
    for row, kind in enumerate(picks):
        alone = chosen(logits[row : row + 1], [answer_of(row, prompt=(1, 2), **kinds[kind])])
        assert alone == together[row : row + 1]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_drafts_change_nothing(data: st.DataObject) -> None:
    """Row by row with the past that was accepted, or several at once with drafts: the same tokens."""
    given = data.draw(
        st.sampled_from(
            [
                {"temperature": 0},
                {"top_k": 3},
                {"top_p": 0.7},
                {"repetition_penalty": 1.5, "presence_penalty": 1.0, "frequency_penalty": 0.5},
                {"temperature": 0, "repetition_penalty": 2.0},
                {"min_tokens": 5, "temperature": 2.0},
            ]
        )
    )
    generator = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    # The model: logits by the last token only.
    table = torch.from_numpy(generator.normal(size=(12, 12)) * 3).float()
    sampler = Sampler(12, "cpu")
    plain, drafted = (answer_of(5, prompt=(1, 2, 3), ends=(4,), ignore_eos=False, **given) for _ in range(2))
    tokens = [0]
    while len(tokens) < 25 and not plain.finished:
        choice = sampler.choose(table[tokens[-1]][None], [plain])[0]
        tokens.append(choice.token)
        plain.accept(choice)
    found = [0]
    while len(found) < 25 and not drafted.finished:
        right = tokens[len(found) : len(found) + int(generator.integers(0, 4))]
        drafts = [token if generator.random() < 0.8 else int(generator.integers(12)) for token in right]
        logits = table[torch.tensor([found[-1], *drafts])]
        choices = sampler.choose_drafted(logits, drafted, drafts)
        assert [choice.token for choice in choices[:-1]] == drafts[: len(choices) - 1]
        for choice in choices:
            found.append(choice.token)
            if not drafted.accept(choice):
                break
    assert found[: len(tokens)] == tokens


def test_rows_without_a_token() -> None:
    logits = torch.randn(4, 3000).half()
    logits[1, 2000] = float("nan")
    answers = [
        answer_of(),
        answer_of(temperature=0),
        answer_of(allowed_token_ids=[7], logit_bias={7: 3}, bad_words=["a"]),
        answer_of(allowed_token_ids=[9], ends=(9,), min_tokens=2),
    ]
    for kind in ({"temperature": 0}, {"top_k": 5}, {"top_p": 0.9}, {}):
        answers[1] = answer_of(**kind)
        choices = Sampler(3000, "cpu").choose(logits, answers)
        assert [choice.token >= 0 for choice in choices] == [True, False, True, False]
        assert "nan in float16" in str(choices[1].fault)
        assert "use dtype bf16 or fp32" in str(choices[1].fault)
        assert "no token may come next" in str(choices[3].fault)


def test_a_device_takes_many_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on an accelerator, on tensors of the CPU: the same tokens."""
    torch.manual_seed(3)
    kinds = [
        *SETTINGS,
        {"top_p": 0.7, "repetition_penalty": 1.3},
        {"top_k": 9, "allowed_token_ids": range(50)},
    ] * 2
    logits = (torch.randn(len(kinds), 3000) * 2).bfloat16()
    answers = [[answer_of(row, prompt=(1, 2), **kind) for row, kind in enumerate(kinds)] for _ in range(2)]
    for answer in (*answers[0][::3], *answers[1][::3]):
        answer.rules.structure = Held(list(range(7, 3000, 11)), 3000)  # type: ignore[assignment]
    expected = chosen(logits, answers[0])
    sampler = Sampler(3000, "cpu")
    sampler._drawer._rows, sampler._drawer._wide = 5, torch.float32
    monkeypatch.setattr(draw, "_zero_behind", draw._zero_behind_together)
    assert [choice.token for choice in sampler.choose(logits, answers[1])] == expected


def test_infinities_and_extreme_settings_still_choose() -> None:
    logits = torch.tensor([[30.0, -30.0, 1.0]])
    extreme = {"repetition_penalty": 1e-40, "temperature": 1e-4}
    assert chosen(logits, [answer_of(prompt=(0, 1), **extreme)]) == [0]
    for kind in ({}, {"top_k": 1}, {"temperature": 0}, {"top_p": 0.5}):
        assert chosen(torch.tensor([[1.0, torch.inf, 2.0]]), [answer_of(**kind)]) == [1]
    masked = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0]])
    assert set(drawn(50, masked[0])) == {1, 3}
    assert logits.tolist() == [[30.0, -30.0, 1.0]]


def test_logprobs_are_of_the_models_own_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 3.0, 1.0, 2.0]])
    wanted = logits.log_softmax(-1)
    answers = [answer_of(temperature=0, logprobs=2, logit_bias={2: 90}), answer_of(temperature=0)]
    first, second = Sampler(4, "cpu").choose(logits, answers)
    assert first.token == 2
    assert list(first.top or {}) == [2, 0, 1]
    assert [entry.rank for entry in (first.top or {}).values()] == [3, 1, 2]
    for token, entry in (first.top or {}).items():
        assert entry.logprob == pytest.approx(float(wanted[0, token]), abs=1e-6)
    assert first.logprob == pytest.approx(float(wanted[0, 2]), abs=1e-6)
    assert second == Choice(1)
    whole = Sampler(4, "cpu").choose(logits[:1], [answer_of(logprobs=-1)])[0]
    assert set(whole.top or {}) == {0, 1, 2, 3}
    only = Sampler(4, "cpu").choose(logits[:1], [answer_of(logprobs=0)])[0]
    assert set(only.top or {}) == {only.token}
    prompt = prompt_logprobs(logits, [3, 1], 1)
    assert [list(entry) for entry in prompt] == [[3, 0], [1]]
    assert prompt[0][3].rank == 4
