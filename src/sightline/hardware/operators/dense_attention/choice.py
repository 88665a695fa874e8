"""Which form computes a call: measured once, remembered in the process and on disk."""

from __future__ import annotations

import logging
import threading
from typing import Any

import torch

from sightline.errors import SightlineError, UsageError
from sightline.hardware.operators.dense_attention import store
from sightline.hardware.operators.dense_attention.forms import Form, forms_for
from sightline.hardware.operators.dense_attention.measure import Measurement, measure
from sightline.hardware.operators.dense_attention.problem import Problem
from sightline.hardware.operators.dense_attention.reference import reference

log = logging.getLogger("sightline.hardware")

#: Problem, device, its kind, and whether forms that are not exact may be taken.
Place = tuple[Problem, torch.device, str, bool]

_lock = threading.RLock()
# The path of the file on disk stands for the device, the versions and the folder.
_known: dict[tuple[str, str], Measurement] = {}
_taken: dict[Place, Form] = {}
_surroundings: dict[tuple[torch.device, str, int], dict[str, Any]] = {}


def _defined(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    keep: torch.Tensor | None,
    scale: float,
    problem: Problem,
) -> torch.Tensor:
    return reference(query, key, value, keep, scale, head_first=True)


#: The definition as a form: op_type "reference", and what computes where no other form can.
REFERENCE = Form("reference", "BNSD", _defined)


def by_measurement(problem: Problem, device: torch.device, kind: str, approximate: bool) -> Form:
    """The fastest form for the problem; the definition, with a warning, where no form computes it."""
    place = (problem, device, kind, approximate)
    return _taken[place] if place in _taken else _take(place)


@torch.compiler.disable
def _take(place: Place) -> Form:
    problem, device, kind, approximate = place
    with _lock:
        best = measured(problem, device, kind).best(approximate)
        if best is None:
            log.warning(
                "attention %s on %s is computed by its definition, slowly: no kernel takes it",
                problem.key(),
                device,
            )
        # `measured` gives only forms that there are.
        _taken[place] = REFERENCE if best is None else _form(best.name, best.layout, kind)
        return _taken[place]


def by_table(problem: Problem, kind: str) -> Form:
    """The first form of the device that takes the problem, without any measurement: the same in every process."""
    taking = (form for form in forms_for(kind) if form.exact and form.why_not(problem) is None)
    return next(taking, REFERENCE)


def by_name(name: str, layout: str | None, problem: Problem, kind: str) -> Form:
    """The form that a caller names.

    Raises:
        UsageError: there is none of this name for the device, or it does not take the problem.
    """
    if name == REFERENCE.name:
        return REFERENCE
    named = [form for form in forms_for(kind) if form.name == name]
    if not named:
        there = ", ".join(dict.fromkeys(form.name for form in [*forms_for(kind), REFERENCE]))
        raise UsageError(f"op_type {name!r} does not exist on {kind}; there are {there}")
    fitting = [form for form in named if layout is None or form.layout == layout]
    if not fitting:
        there = ", ".join(form.layout for form in named)
        raise UsageError(f"op_type {name!r} takes no layout {layout!r}; give {there}")
    reason = fitting[0].why_not(problem)
    if reason is not None:
        raise UsageError(f"op_type {name!r} does not take {problem.key()}: {reason}")
    return fitting[0]


def measured(
    problem: Problem, device: torch.device, kind: str | None = None, *, again: bool = False
) -> Measurement:
    """The measurement of a problem: known in this process, else on disk, else made now and kept.

    Args:
        kind: of the device; as it says itself when None.
        again: measure even if it is known.

    Raises:
        SightlineError: it would have to be made while a CUDA graph is captured.
    """
    kind = kind or device.type
    surroundings = _around(device, kind)
    place = (str(store.path_of(surroundings)), problem.key())
    with _lock:
        known = None if again else _known.get(place)
        if known is None and not again:
            known = store.load(surroundings).get(problem.key())
        if known is None or not _names_forms(known, kind):
            _refuse_in_capture(problem, kind)
            known = measure(problem, forms_for(kind), device)
            store.save(surroundings, known)
            for taken in [taken for taken in _taken if taken[0] == problem]:
                del _taken[taken]
        _known[place] = known
        return known


def measurements(device: torch.device, kind: str | None = None) -> list[Measurement]:
    """What is on disk for a device with the versions of now, in the order of `Problem.key`."""
    known = store.load(_around(device, kind or device.type))
    return [known[key] for key in sorted(known)]


def forget() -> None:
    """Let this process remember no choice; what is on disk stays."""
    with _lock:
        _known.clear()
        _taken.clear()
        _surroundings.clear()


def _refuse_in_capture(problem: Problem, kind: str) -> None:
    if kind == "cuda" and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise SightlineError(
            f"attention {problem.key()} cannot be measured while a CUDA graph is captured; call it once before, or "
            "run sightline video tune"
        )


def _around(device: torch.device, kind: str) -> dict[str, Any]:
    place = (device, kind, torch.get_num_threads())
    if place not in _surroundings:
        _surroundings[place] = store.environment(device, kind)
    return _surroundings[place]


def _form(name: str, layout: str, kind: str) -> Form:
    return next(form for form in forms_for(kind) if (form.name, form.layout) == (name, layout))


def _names_forms(measurement: Measurement, kind: str) -> bool:
    """Whether a measurement speaks of the forms of today; a file may have been edited."""
    there = {(form.name, form.layout) for form in forms_for(kind)}
    return {(trial.name, trial.layout) for trial in measurement.trials} == there
