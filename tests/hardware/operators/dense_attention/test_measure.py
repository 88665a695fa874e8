"""Measuring: a form that is wrong in any way is not timed, and noise does not decide between equals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sightline.hardware.operators.dense_attention import measure as module
from sightline.hardware.operators.dense_attention.forms import Form
from sightline.hardware.operators.dense_attention.measure import Measurement, Trial, inputs, measure
from sightline.hardware.operators.dense_attention.problem import Problem
from sightline.hardware.operators.dense_attention.torch_forms import _sdpa

CPU = torch.device("cpu")
PROBLEM = Problem(2, 4, 2, 40, 30, 16, "fp32", mask="bk")


def test_right_forms_are_timed_and_their_errors_noted() -> None:
    trial = only(_sdpa)
    assert trial.reason is None
    assert trial.seconds is not None
    assert 0 < trial.seconds < 10
    assert trial.error is not None
    assert trial.error < 2e-6


def only(kernel: Callable[..., torch.Tensor], problem: Problem = PROBLEM, **options: Any) -> Trial:
    (trial,) = measure(problem, [Form("one", "BNSD", kernel, **options)], CPU).trials
    return trial


def unwritten(query: torch.Tensor, *rest: Any) -> torch.Tensor:
    mixed = _sdpa(query, *rest)
    mixed[0, 1, 7] = 0.01
    return mixed


def not_a_number(*arguments: Any) -> torch.Tensor:
    mixed = _sdpa(*arguments)
    mixed[-1, -1, -1, -1] = float("nan")
    return mixed


WRONG = {
    "a row that nobody wrote": unwritten,
    "a nan": not_a_number,
    "another scale": lambda q, k, v, keep, scale, problem: _sdpa(q, k, v, keep, 0.25, problem),
    "no mask": lambda q, k, v, keep, scale, problem: _sdpa(q, k, v, None, scale, problem),
    "the mask turned round": lambda q, k, v, keep, scale, problem: _sdpa(q, k, v, ~keep, scale, problem),
    "key heads in turn": lambda q, k, v, keep, scale, problem: _sdpa(
        q, k.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1), keep, scale, Problem(2, 4, 4, 40, 30, 16, "fp32")
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_form_is_not_timed(what: str) -> None:
    trial = only(WRONG[what])
    assert trial.seconds is None
    assert "differs from the definition" in str(trial.reason)


def test_one_row_among_very_many_is_enough() -> None:
    many = Problem(1, 4, 4, 4000, 8, 16, "bf16")
    assert only(_sdpa, many).reason is None
    assert "in the worst row" in str(only(unwritten, many).reason)


def test_a_row_beyond_those_held_against_the_definition_is_found_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHECKED", 5 * 2 * 4 * 30)  # five queries: 0, 10, 20, 29, 39
    forms = [Form("right", "BNSD", _sdpa), Form("wrong", "BNSD", unwritten)]
    right, wrong = measure(PROBLEM, forms, CPU).trials
    assert right.reason is None
    assert wrong.seconds is None


def test_what_raises_or_gives_another_shape_is_noted() -> None:
    def raises(*arguments: Any) -> torch.Tensor:
        raise NotImplementedError("not on this device\nand more")

    assert only(raises).reason == "failed: not on this device"
    assert "gives (2, 39, 4, 16)" in str(only(lambda *given: _sdpa(*given)[:, :, 1:]).reason)
    assert only(_sdpa, refusal=lambda problem: "too long").reason == "too long"
    learning = Problem(2, 4, 2, 40, 30, 16, "fp32", gradient=True)
    assert only(_sdpa, learning, differentiable=False).reason == "it has no gradient"


def test_an_inexact_form_has_its_own_tolerance() -> None:
    def off(share: float) -> Callable[..., torch.Tensor]:
        return lambda *given: (1 + share) * _sdpa(*given)

    assert only(off(0.03)).reason is not None
    assert only(off(0.03), exact=False).reason is None
    assert only(off(0.2), exact=False).reason is not None


@pytest.mark.parametrize("dtype", ["fp64", "fp32", "fp16", "bf16"])
def test_sdpa_is_right_in_every_dtype(dtype: str) -> None:
    assert only(_sdpa, Problem(1, 2, 2, 33, 20, 16, dtype)).reason is None


def measurement(**times: float) -> Measurement:
    trials = [Trial(name, "BNSD", name != "sage", seconds, 0.0) for name, seconds in times.items()]
    return Measurement(PROBLEM, (*trials, Trial("broken", "BNSD", True, reason="failed")), "today")


def chosen(measured: Measurement, approximate: bool = False) -> str | None:
    best = measured.best(approximate)
    return best and best.name


def test_the_fastest_is_taken_and_of_near_ties_the_first() -> None:
    assert chosen(measurement(a=1.0, b=0.9, c=2.0)) == "b"
    assert chosen(measurement(a=1.02, b=1.0)) == "a"
    assert chosen(measurement(a=1.0, sage=0.5)) == "a"
    assert chosen(measurement(a=1.0, sage=0.5), approximate=True) == "sage"
    assert chosen(measurement()) is None


def test_everyone_has_several_rounds_but_those_far_behind() -> None:
    counts = [0, 0]
    waits = iter([0.03, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])

    def disturbed_at_first() -> None:
        import time

        counts[0] += 1
        time.sleep(next(waits))

    def slow() -> None:
        import time

        counts[1] += 1
        time.sleep(0.02)

    times = module._times([disturbed_at_first, slow], lambda: None, 30.0)
    assert times[0] < 0.02
    assert counts == [7, 3]


@pytest.mark.parametrize("head_first", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mask", ["", "k", "bk", "qk", "bnqk"])
def test_the_random_tensors_are_those_of_the_problem(head_first: bool, packed: bool, mask: str) -> None:
    problem = Problem(2, 4, 2, 5, 6, 16, "bf16", head_first, mask, packed)
    tensors, keep = inputs(problem, CPU)
    assert Problem.of(*tensors, keep, head_first) == problem


def test_a_problem_has_one_line_and_counts_its_operations() -> None:
    problem = Problem(1, 12, 12, 32760, 512, 128, "bf16", True, "bk", False, True)
    assert problem.key() == "bf16 b1 n12 q32760 k512 d128 BNSD mask:bk strided gradient"
    assert PROBLEM.key() == "fp32 b2 n4/2 q40 k30 d16 BSND mask:bk"
    # 4 Sq Sk d of the heads together; Wan 1.3B's self-attention is 197.82 TFLOP in its 30 blocks.
    assert 30 * Problem(1, 12, 12, 32760, 32760, 128, "bf16").operations == pytest.approx(197.82e12, rel=1e-4)
