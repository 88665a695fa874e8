"""Small changes of a draft."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from sightline.video.search.drafts import Draft, guided
from sightline.video.search.errors import Errors


def neighbours(draft: Draft, errors: Errors) -> Iterator[Draft]:
    """A computed step moved by one or two, added or removed, in both branches or without the prompt only; a look
    further or less far back; fits that trust the probes more or less. Site drafts move in both branches."""
    both = guided(errors)
    output = draft.site == "output"
    for moved in _moves(draft.cond, range(1, errors.steps)):
        alike = moved if draft.uncond == draft.cond else _among(draft.uncond, moved)
        yield replace(draft, cond=moved, uncond=alike if both else (), name="")
    if both and output and draft.way != "reused":
        for moved in _moves(draft.uncond, draft.cond[1:]):
            yield replace(draft, uncond=moved, name="")
    for memory in {"fitted": (1, 2, 3), "extrapolated": (2, 3, 4)}.get(draft.way, ()):
        yield replace(draft, memory=memory, name="")
    if draft.way == "fitted":
        for noise in (0.003, 0.01, 0.03, 0.1):
            yield replace(draft, noise=noise, name="")


def _moves(computed: tuple[int, ...], allowed: Sequence[int]) -> Iterator[tuple[int, ...]]:
    free = [step for step in allowed if step not in computed]
    for step in computed[1:]:
        rest = [each for each in computed if each != step]
        yield tuple(rest)
        near = sorted(free, key=lambda each: (abs(each - step), each))[:4]
        for other in near:
            yield tuple(sorted((*rest, other)))
    for step in free:
        yield tuple(sorted((*computed, step)))


def _among(uncond: Sequence[int], cond: Sequence[int]) -> tuple[int, ...]:
    """The same steps where cond computes them, else the nearest that it does."""
    return tuple(sorted({min(cond, key=lambda each: (abs(each - step), each)) for step in uncond}))
