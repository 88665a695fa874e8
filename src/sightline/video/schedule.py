"""What a plan means for each part at each step, worked out before the first: an executor only looks it up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from sightline.errors import UsageError
from sightline.video.fits import Asked, SiteFits, Term
from sightline.video.sites import Action, Site


@dataclass(frozen=True)
class Directive:
    """What one part does at one step.

    Attributes:
        action: None where the part is not reached, for what holds it is not computed.
        sources: the earlier steps whose values make the one of this step, oldest first; empty when computing.
        weights: by which each source but the newest pulls the newest: the value is
            `newest + sum(weight * (source - newest))`, Lagrange's polynomial through the sources.
        terms: what a fitted value is the weighted sum of; empty otherwise.
        keep: the steps whose values a later step needs once this step is over.
    """

    action: Action | None
    sources: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    terms: tuple[Term, ...] = ()
    keep: frozenset[int] = frozenset()


def directives(
    sites: Mapping[Site, Sequence[Action]],
    times: Sequence[float],
    order: int,
    *,
    branch: str = "cond",
    fits: Mapping[Site, SiteFits] | None = None,
    asked: Mapping[Site, Iterable[Asked]] | None = None,
) -> dict[Site, list[Directive]]:
    """One branch's directives by part, in step order.

    Args:
        sites: actions by site, one a step.
        times: the coordinate in which extrapolation is a polynomial, one a step.
        order: the polynomial's degree where enough steps were computed.
        branch: whose they are.
        fits: the terms of the fitted steps, by site.
        asked: by site, what the other branch takes.

    Raises:
        UsageError: a step takes what no step before it computed.
    """
    table = {}
    for site, actions in sites.items():
        for part in site.parts():
            reached = [
                all(other[step] is Action.COMPUTE for around, other in sites.items() if part.inside(around))
                for step in range(len(actions))
            ]
            terms = (fits or {}).get(site, {})
            found = _of_part(str(site), actions, reached, times, order, terms)
            table[part] = _with_keep(found, branch, (asked or {}).get(site, ()))
    return table


def _of_part(
    name: str,
    actions: Sequence[Action],
    reached: Sequence[bool],
    times: Sequence[float],
    order: int,
    fits: SiteFits,
) -> list[Directive]:
    computed: list[int] = []
    found: list[Directive] = []
    for step, action in enumerate(actions):
        if not reached[step]:
            found.append(Directive(None))
        elif action is Action.COMPUTE:
            computed.append(step)
            found.append(Directive(action))
        elif action is Action.FIT:
            found.append(Directive(action, terms=tuple(fits.get(step, ()))))
        else:
            need = 1 if action is Action.REUSE else 2
            if len(computed) < need:
                verb = "reuses" if action is Action.REUSE else "extrapolates"
                raise UsageError(
                    f"step {step} {verb} {name}, but only {len(computed)} of the {need} steps that it takes "
                    f"computed it before; compute it earlier"
                )
            sources = tuple(computed[-1:] if action is Action.REUSE else computed[-(order + 1) :])
            found.append(Directive(action, sources, _weights(times, sources, step)))
    return found


def _weights(times: Sequence[float], sources: Sequence[int], step: int) -> tuple[float, ...]:
    weights = []
    for one in sources[:-1]:
        weight = 1.0
        for other in sources:
            if other != one:
                weight *= (times[step] - times[other]) / (times[one] - times[other])
        weights.append(weight)
    return tuple(weights)


def _with_keep(found: Sequence[Directive], branch: str, asked: Iterable[Asked]) -> list[Directive]:
    """Add how much of each step's past is still needed, so that a buffer goes when nobody asks for it again."""
    until = {each.step: each.until for each in sorted(asked, key=lambda each: each.until)}
    for step, each in enumerate(found):
        own = [term.step for term in each.terms if term.branch == branch]
        for source in (*each.sources, *own):
            until[source] = max(step, until.get(source, 0))
    return [
        replace(each, keep=frozenset(source for source, last in until.items() if source <= step < last))
        for step, each in enumerate(found)
    ]
