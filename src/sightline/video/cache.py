"""Carrying a plan out: what is kept of each step, and what a step that is not computed takes from it.

The clock is the caller's: `with cache.step(i, branch):` around each call of the model. Nothing counts calls, so an
aborted generation, a warm-up or a second model shifts nothing. What a step does was worked out before the first
(`sightline.video.schedule`): inside the model only a `Point`'s plain fields are looked at, which torch.compile
guards on, and no value of a tensor is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sightline.errors import SightlineError
from sightline.video.plan import Plan
from sightline.video.points import Point, SharedAttention, Values
from sightline.video.schedule import Directive
from sightline.video.sites import BRANCHES, Action, Kind, Site

if TYPE_CHECKING:
    from torch import Tensor


class StepCache:
    """Executes one plan, one generation at a time.

    Args:
        share: let one branch take the first block's self-attention from the other where both compute it; exact.

    Attributes:
        points: the parts of the model that the plan keeps something of.
        shared: the first block's self-attention, or None.
        open: whether a generation is running.
    """

    def __init__(self, plan: Plan, *, share: bool = True) -> None:
        self.plan = plan
        self._table = {branch: plan.directives(branch) for branch in BRANCHES}
        parts = {part for branch in BRANCHES for part in self._table[branch]}
        self.points = {part: Point(part) for part in sorted(parts)}
        self.shared = SharedAttention() if share else None
        self.open = False
        self.free()

    def free(self) -> None:
        """Forget everything that is held."""
        self._held: dict[tuple[str, Site], dict[int, Values]] = {}
        self._ran: dict[str, list[int]] = {branch: [] for branch in BRANCHES}
        self._inside: tuple[int, str] | None = None
        self._rest()
        if self.shared is not None:
            self.shared.rest()

    def held_bytes(self) -> int:
        """Bytes of all tensors that are held now."""
        kept = {id(each): each for held in self._held.values() for value in held.values() for each in value}
        if self.shared is not None and self.shared.value is not None:
            kept[id(self.shared.value)] = self.shared.value
        return sum(each.numel() * each.element_size() for each in kept.values())

    @contextmanager
    def generation(self) -> Iterator[StepCache]:
        """The loop over all steps; leaving it, by whichever way, frees what is held.

        Raises:
            SightlineError: another generation is open.
        """
        self.begin()
        try:
            yield self
        finally:
            self.end()

    def begin(self) -> None:
        """Open a generation; `generation()` is this and `end`."""
        if self.open:
            raise SightlineError(
                "this step cache is in a generation; make one cache for each that runs at a time"
            )
        self.open = True

    def end(self) -> None:
        """Close the generation and free what is held."""
        self.open = False
        self.free()

    @contextmanager
    def step(self, index: int, branch: str = "cond") -> Iterator[None]:
        """One call of the model: step `index` from 0, for one branch.

        Raises:
            SightlineError: outside of `generation()`, inside another step, a step or branch that the plan does not
                have, steps out of order, or an earlier step that this one takes from did not run.
        """
        self.enter(index, branch)
        try:
            yield
        finally:
            self.leave()

    def enter(self, index: int, branch: str = "cond") -> None:
        """Begin a step; `step()` is this and `leave`."""
        self._check(index, branch)
        for part, rows in self._table[branch].items():
            directive, point = rows[index], self.points[part]
            point.computes = directive.action in (None, Action.COMPUTE)
            point.stores = directive.action is Action.COMPUTE and index in directive.keep
            point.fitted = bool(directive.terms)
            point.weights = _tensors(directive.weights or tuple(term.weight for term in directive.terms))
            point.held = tuple(self._held[source, part][step] for source, step in _sources(branch, directive))
        self._set_shared(index, branch)
        self._inside = (index, branch)
        self._ran[branch].append(index)

    def leave(self) -> None:
        """End the step: what no later one asks for goes."""
        if self._inside is None:
            return
        index, branch = self._inside
        for part, rows in self._table[branch].items():
            directive, point = rows[index], self.points[part]
            held = self._held.setdefault((branch, part), {})
            if point.value:
                held[index] = point.value
            elif point.stores:
                # It did not run though it should have: nothing may be taken from what is older.
                held.clear()
            for step in held.keys() - directive.keep:
                del held[step]
        if self.shared is not None and self.shared.takes:
            self.shared.value = self.shared.input = None
        self._inside = None
        self._rest()

    def _rest(self) -> None:
        for point in self.points.values():
            point.rest()
        if self.shared is not None:
            self.shared.gives = self.shared.takes = False

    def _check(self, index: int, branch: str) -> None:
        if not self.open:
            raise SightlineError(
                "a step began outside of a generation; put `with cache.generation():` around the loop"
            )
        if self._inside is not None:
            raise SightlineError(
                f"step {index} began inside step {self._inside[0]}; leave one before the next"
            )
        if branch not in BRANCHES:
            raise SightlineError(f"{branch!r} is no branch; the branches are {' and '.join(BRANCHES)}")
        if type(index) is not int or not 0 <= index < self.plan.steps:
            raise SightlineError(f"the plan has steps 0 to {self.plan.steps - 1}, not {index!r}")
        ran = self._ran[branch]
        if ran and index <= ran[-1]:
            raise SightlineError(
                f"step {index} of branch {branch} came after step {ran[-1]}; begin a new generation for a new video"
            )
        for part, rows in self._table[branch].items():
            for source, step in _sources(branch, rows[index]):
                if step not in self._held.get((source, part), {}):
                    whose = "" if source == branch else f" of branch {source}"
                    advice = (
                        "" if source == branch else f" and both branches in one process, {BRANCHES[0]} first"
                    )
                    raise SightlineError(
                        f"step {index} of branch {branch} takes {part} from step {step}{whose}, which did not compute "
                        f"it; run every step of the plan{advice}"
                    )

    def _set_shared(self, index: int, branch: str) -> None:
        shared = self.shared
        if shared is None:
            return
        other = BRANCHES[1 - BRANCHES.index(branch)]
        first = Site(Kind.ATTENTION, 0, 1)
        second = self._ran[other][-1:] == [index]
        shared.takes = second and shared.value is not None
        shared.gives = not second and all(self.plan.computes(each, index, first) for each in BRANCHES)
        if not shared.takes:
            shared.value = shared.input = None


def _sources(branch: str, directive: Directive) -> list[tuple[str, int]]:
    """The branch and step of each value that a step takes."""
    if directive.terms:
        return [(term.branch, term.step) for term in directive.terms]
    return [(branch, step) for step in directive.sources]


def _tensors(weights: tuple[float, ...]) -> tuple[Tensor, ...]:
    """As tensors without dimensions, which multiply like numbers: of a number torch.compile makes a constant, and a
    new variant of the model for each. They stay in host memory, so that nothing waits for the device."""
    if not weights:
        return ()
    import torch

    return tuple(torch.tensor(weight, dtype=torch.float64) for weight in weights)
