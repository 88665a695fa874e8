"""Time the forms of an attention call at its exact shape, each held against the definition first."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

import torch

from sightline.errors import first_line
from sightline.hardware.accelerator import Accelerator
from sightline.hardware.operators.dense_attention.forms import Form
from sightline.hardware.operators.dense_attention.problem import Problem
from sightline.hardware.operators.dense_attention.reference import reference

log = logging.getLogger("sightline.hardware")

#: How far a result may be from the definition: the length of the difference as a share of the length of the whole.
#: bf16 itself rounds by 0.002; kernels that keep their scores in bf16 come to 0.008.
TOLERANCE = {"fp64": 1e-9, "fp32": 1e-4, "fp16": 2e-3, "bf16": 1.2e-2}
#: The same for forms that say that they are not exact.
APPROXIMATE = 0.1
# A single row may be so much further from its own: rows that nobody wrote are found, however many are right.
_WORST_ROW = 6

# Forms as near as this to the fastest count as fast: the first of them in the list is taken, so that two processes
# seldom choose differently for noise alone.
_TIE = 1.03
_ROUNDS = 7
# So many rounds are for everybody whose time allows it: a first one is often disturbed.
_FIRST_ROUNDS = 3
# Scores of the definition that are computed; a larger call is held against it at evenly spaced queries.
_CHECKED = 1 << 27


@dataclass(frozen=True)
class Trial:
    """What became of one form.

    Attributes:
        seconds: of one call, the best of several; None if it was not timed.
        error: length of the difference from the definition, as a share of its length; None if it gave nothing.
        reason: why it is not taken; None for one that may be.
    """

    name: str
    layout: str
    exact: bool
    seconds: float | None = None
    error: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Measurement:
    """What was measured for a problem, and when (ISO 8601, UTC)."""

    problem: Problem
    trials: tuple[Trial, ...]
    when: str

    def best(self, approximate: bool = False) -> Trial | None:
        """The fastest that may be taken; among near ties the first. None where none computes the problem."""
        timed = [
            (trial, trial.seconds)
            for trial in self.trials
            if trial.seconds is not None and trial.reason is None and (trial.exact or approximate)
        ]
        if not timed:
            return None
        fastest = min(seconds for _, seconds in timed)
        return next(trial for trial, seconds in timed if seconds <= fastest * _TIE)

    def plain(self) -> dict[str, Any]:
        trials = [asdict(trial) for trial in self.trials]
        return {"problem": self.problem.plain(), "when": self.when, "trials": trials}

    @classmethod
    def from_plain(cls, value: dict[str, Any]) -> Measurement:
        """
        Raises:
            KeyError, TypeError, ValueError: it is not what `plain` gave.
        """
        trials = tuple(Trial(**trial) for trial in value["trials"])
        for trial in trials:
            for number in (trial.seconds, trial.error):
                if number is not None and not (isinstance(number, float) and number >= 0):
                    raise ValueError(f"{number!r} is no time and no error")
        return cls(Problem(**value["problem"]), trials, str(value["when"]))


def measure(
    problem: Problem, forms: list[Form], device: torch.device, *, seconds: float = 1.0
) -> Measurement:
    """Try every form on random tensors like the problem's.

    A form that raises, gives numbers that are not finite, or differs from the definition is not timed. Tensors that
    are not contiguous are taken for what they usually are: parts of one product, or heads swapped with tokens.

    Args:
        seconds: about as long as each form may be timed; one call at least.
    """
    tensors, keep = inputs(problem, device)
    scale = 1.25 * problem.head_dim**-0.5  # not the default, which a kernel may take by mistake
    check = _Check(problem, tensors, keep, scale)
    synchronize = Accelerator(device.type, device.index).synchronize
    trials: list[Trial] = []
    running: list[tuple[int, Callable[[], torch.Tensor]]] = []
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # back ends say in many lines why they do not take a call
        for form in forms:
            trial, call = _try(form, problem, tensors, keep, scale, check)
            trials.append(trial)
            if call is not None:
                running.append((len(trials) - 1, call))
        times = _times([call for _, call in running], synchronize, seconds)
    for (place, _), best in zip(running, times, strict=True):
        old = trials[place]
        trials[place] = Trial(old.name, old.layout, old.exact, best, old.error)
    return Measurement(problem, tuple(trials), datetime.now(timezone.utc).isoformat(timespec="seconds"))


def inputs(
    problem: Problem, device: torch.device
) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor | None]:
    """Random query, key, value and placed mask of a problem, the same in every run on a device."""
    generator = torch.Generator(device).manual_seed(0)

    def drawn(tokens: int, heads: int) -> torch.Tensor:
        shape = [problem.batch, tokens, heads, problem.head_dim]
        if problem.head_first and problem.packed:
            shape[1], shape[2] = shape[2], shape[1]
        if not problem.head_first and not problem.packed:
            shape[2] *= 3
        numbers = torch.randn(shape, generator=generator, device=device).to(problem.torch_dtype)
        if problem.packed:
            return numbers
        return numbers.transpose(1, 2) if problem.head_first else numbers[:, :, :heads]

    query = drawn(problem.queries, problem.heads)
    key, value = (drawn(problem.keys, problem.kv_heads) for _ in range(2))
    if not problem.mask:
        return (query, key, value), None
    sizes = {"b": problem.batch, "n": problem.heads, "q": problem.queries, "k": problem.keys}
    spans = [size if letter in problem.mask else 1 for letter, size in sizes.items()]
    return (query, key, value), torch.rand(spans, generator=generator, device=device) < 0.8


def run(
    form: Form,
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    keep: torch.Tensor | None,
    scale: float,
    problem: Problem,
) -> torch.Tensor:
    """The form's result, with zeros in the rows that see no key, which kernels leave to chance."""
    mixed = form(*tensors, keep, scale, problem)
    if keep is None:
        return mixed
    empty = ~keep.any(dim=-1, keepdim=True)
    return mixed.masked_fill(empty if problem.head_first else empty.transpose(1, 2), 0)


def product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product in `dtype`, the best of a few: what attention cannot exceed."""
    size = 8192 if device.type in ("cuda", "npu") else 1024
    left = torch.randn(size, size, device=device).to(dtype)
    times = _times([lambda: left @ left], Accelerator(device.type, device.index).synchronize, 0.2)
    return 2 * size**3 / times[0]


class _Check:
    """Holds results against the definition at some queries, and at all of them against the first result that passed."""

    def __init__(
        self,
        problem: Problem,
        tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        keep: torch.Tensor | None,
        scale: float,
    ) -> None:
        query, key, value = tensors
        self._axis = 2 if problem.head_first else 1
        most = max(1, _CHECKED // (problem.batch * problem.heads * problem.keys))
        count = min(problem.queries, most)
        self._rows = torch.linspace(0, problem.queries - 1, count, device=query.device).round().long()
        seen = keep[:, :, self._rows] if keep is not None and keep.shape[2] > 1 else keep
        wide = torch.promote_types(query.dtype, torch.float32)
        with torch.no_grad():
            self._expected = reference(
                query.index_select(self._axis, self._rows).to(wide),
                key.to(wide),
                value.to(wide),
                seen,
                scale,
                problem.head_first,
            )
        self._whole: torch.Tensor | None = None

    def errors(self, given: torch.Tensor) -> tuple[float, float]:
        """Of the whole and of the worst row, as shares of their lengths; nan where numbers are not finite."""
        errors = [_errors(given.index_select(self._axis, self._rows), self._expected)]
        if self._whole is not None:
            errors.append(_errors(given, self._whole))
        whole, worst = torch.tensor(errors, dtype=torch.float64).amax(dim=0).tolist()  # nan is the largest
        return whole, worst

    def accept(self, given: torch.Tensor) -> None:
        """Let later results be held against this one at all queries."""
        if self._whole is None and len(self._rows) < given.shape[self._axis]:
            self._whole = given


def _errors(given: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    wide = torch.promote_types(expected.dtype, torch.float32)
    lengths = (given.to(wide) - expected.to(wide)).norm(dim=-1)
    usual = expected.to(wide).norm(dim=-1).square().mean().sqrt()
    return float(lengths.square().mean().sqrt() / usual), float(lengths.max() / usual)


def _try(
    form: Form,
    problem: Problem,
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    keep: torch.Tensor | None,
    scale: float,
    check: _Check,
) -> tuple[Trial, Callable[[], torch.Tensor] | None]:
    reason = form.why_not(problem)
    if reason is not None:
        return Trial(form.name, form.layout, form.exact, reason=reason), None

    def call() -> torch.Tensor:
        return run(form, tensors, keep, scale, problem)

    try:
        given = call()
        if given.shape != tensors[0].shape:
            raise ValueError(f"it gives {tuple(given.shape)} for {tuple(tensors[0].shape)}")
        error, worst = check.errors(given)
    except Exception as failure:  # whatever a kernel raises, there are others
        log.info("%s in %s: %s", form.name, form.layout, first_line(failure))
        return Trial(form.name, form.layout, form.exact, reason=f"failed: {first_line(failure)}"), None
    allowed = TOLERANCE[problem.dtype] if form.exact else APPROXIMATE
    if not (error <= allowed and worst <= _WORST_ROW * allowed):  # nan too
        text = f"differs from the definition by {error:.2g} ({worst:.2g} in the worst row), more than {allowed:g}"
        known = error if math.isfinite(error) else None  # JSON has no nan
        return Trial(form.name, form.layout, form.exact, error=known, reason=text), None
    if form.exact:
        check.accept(given)
    return Trial(form.name, form.layout, form.exact, error=error), call


def _times(calls: list[Callable[[], Any]], synchronize: Callable[[], None], seconds: float) -> list[float]:
    """Seconds of each call, the best of several rounds in which they take turns."""

    def once(call: Callable[[], Any]) -> float:
        synchronize()
        started = time.perf_counter()
        call()
        synchronize()
        return time.perf_counter() - started

    times = [once(call) for call in calls]
    spent = list(times)
    for number in range(1, _ROUNDS):
        for place, call in enumerate(calls):
            # One that is far behind will not catch up, and a long one needs no repetition.
            behind = number >= _FIRST_ROUNDS and times[place] > 2 * min(times)
            if behind or spent[place] + times[place] > seconds:
                continue
            lasted = once(call)
            spent[place] += lasted
            times[place] = min(times[place], lasted)
    return times
