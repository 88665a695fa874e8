"""What a plan means for each part at each step, worked out before the first: an executor only looks it up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sightline.errors import UsageError
from sightline.video.sites import Action, Site


@dataclass(frozen=True)
class Directive:
    """What one part does at one step.

    Attributes:
        action: None where the part is not reached, for what holds it is not computed.
        sources: the earlier steps whose values make the one of this step, oldest first; empty when computing.
        weights: by which each source but the newest pulls the newest: the value is
            `newest + sum(weight * (source - newest))`, Lagrange's polynomial through the sources.
        keep: how many of the newest values a later step needs once this step is over.
    """

    action: Action | None
    sources: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()
    keep: int = 0


def directives(
    sites: Mapping[Site, Sequence[Action]], times: Sequence[float], order: int
) -> dict[Site, list[Directive]]:
    """One branch's directives by part, in step order.

    Args:
        sites: actions by site, one a step.
        times: the coordinate in which extrapolation is a polynomial, one a step.
        order: the polynomial's degree where enough steps were computed.

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
            table[part] = _of_part(str(site), actions, reached, times, order)
    return table


def _of_part(
    name: str, actions: Sequence[Action], reached: Sequence[bool], times: Sequence[float], order: int
) -> list[Directive]:
    computed: list[int] = []
    found: list[Directive] = []
    for step, action in enumerate(actions):
        if not reached[step]:
            found.append(Directive(None))
        elif action is Action.COMPUTE:
            computed.append(step)
            found.append(Directive(action))
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
    return _with_keep(found)


def _weights(times: Sequence[float], sources: Sequence[int], step: int) -> tuple[float, ...]:
    weights = []
    for one in sources[:-1]:
        weight = 1.0
        for other in sources:
            if other != one:
                weight *= (times[step] - times[other]) / (times[one] - times[other])
        weights.append(weight)
    return tuple(weights)


def _with_keep(found: list[Directive]) -> list[Directive]:
    """Add from the end how much of each step's past is still needed, so that a buffer goes when nobody asks again."""
    needed: set[int] = set()
    result = []
    for step in reversed(range(len(found))):
        each = found[step]
        keep = len([source for source in needed if source <= step])
        result.append(Directive(each.action, each.sources, each.weights, keep))
        needed.update(each.sources)
    return result[::-1]
