"""Fitted values of a plan: weighted sums of what earlier steps computed, with weights that were measured.

An extrapolation is such a sum too, but one that asks nothing of the model. A fitted one may weigh what each branch
computed; what the branch without the prompt gives is often nearly what the other one gives in the same step, less a
difference that hardly moves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sightline.errors import UsageError
from sightline.video.sites import BRANCHES, Action, Site

if TYPE_CHECKING:
    from sightline.video.schedule import Directive


class Term(NamedTuple):
    """A computed value's share in a fitted one: which branch and step computed it, and its weight."""

    branch: str
    step: int
    weight: float


SiteFits = Mapping[int, Sequence[Term]]  # by the step that takes them
Fits = Mapping[str, Mapping[Site, SiteFits]]  # by branch


class Asked(NamedTuple):
    """A step whose value the other branch takes, and up to which step of its own branch it is kept for that."""

    step: int
    until: int


def asked_of(branch: str, fits: Fits) -> dict[Site, list[Asked]]:
    """What the other branch takes of this one, by site. It goes with this branch's next call after that, which for
    the branch that comes first in a step is in the step after."""
    found: dict[Site, list[Asked]] = {}
    for taker, sites in fits.items():
        later = BRANCHES.index(taker) > BRANCHES.index(branch)
        for site, steps in sites.items():
            terms = [(step, term) for step, each in steps.items() for term in each]
            uses = [Asked(term.step, step + later) for step, term in terms if term.branch == branch != taker]
            if uses:
                found.setdefault(site, []).extend(uses)
    return found


def check_fits(
    fits: Fits,
    actions: Mapping[str, Mapping[Site, Sequence[Action]]],
    tables: Mapping[str, Mapping[Site, Sequence[Directive]]],
) -> None:
    """Refuse fits that cannot be carried out.

    Args:
        tables: what each part does at each step, by branch.

    Raises:
        UsageError: a fitted step without terms, terms without a fitted step, or a term that nothing computed.
    """
    for branch, sites in actions.items():
        for site, row in sites.items():
            given = fits.get(branch, {}).get(site, {})
            fitted = {step for step, action in enumerate(row) if action is Action.FIT}
            for step in sorted(fitted ^ set(given)):
                lack = "has no terms" if step in fitted else "has terms but another action"
                raise UsageError(
                    f"branch {branch}: step {step} of {site} {lack}; give fits for each step of F"
                )
    for branch, named in fits.items():
        for site, steps in named.items():
            if site not in actions.get(branch, {}):
                raise UsageError(f"branch {branch}: fits name {site}, which has no actions")
            for step, terms in steps.items():
                where = f"branch {branch}: step {step} of {site}"
                if not terms:
                    raise UsageError(f"{where} is a sum of nothing; give it terms")
                for term in terms:
                    _check_overlap(where, site, term.branch, actions)
                    _check_term(where, (step, branch), site, term, tables)


def _check_overlap(where: str, site: Site, branch: str, actions: Mapping[str, Mapping[Site, Any]]) -> None:
    own = actions.get(branch, {})
    other = [each for each in own if each.overlaps(site)]
    if other and site not in own:
        raise UsageError(
            f"{where} takes {site} of {branch}, which keeps {other[0]}; keep the same range in both"
        )


def _check_term(
    where: str,
    taker: tuple[int, str],
    site: Site,
    term: Term,
    tables: Mapping[str, Mapping[Site, Sequence[Directive]]],
) -> None:
    if term.branch not in BRANCHES or type(term.step) is not int:
        raise UsageError(f"{where} takes branch {term.branch!r}, step {term.step!r}, which does not exist")
    if type(term.weight) not in (int, float) or not math.isfinite(term.weight):
        raise UsageError(f"{where} has the weight {term.weight!r}; give a finite number")
    step, branch = taker
    earlier = (term.step, BRANCHES.index(term.branch)) < (step, BRANCHES.index(branch))
    table = tables[term.branch]
    if not (earlier and term.step >= 0) or any(
        table[part][term.step].action is not Action.COMPUTE for part in site.parts()
    ):
        raise UsageError(
            f"{where} takes step {term.step} of {term.branch}, which does not compute it before; take what is computed"
        )


def fits_to_json(fits: Fits) -> dict[str, Any]:
    """By branch, site and step a list of [branch, step, weight]."""
    return {
        branch: {
            str(site): {str(step): [list(term) for term in terms] for step, terms in steps.items()}
            for site, steps in sites.items()
        }
        for branch, sites in fits.items()
    }


def fits_from_json(values: Any) -> dict[str, dict[Site, dict[int, tuple[Term, ...]]]]:
    """What `fits_to_json` wrote.

    Raises:
        UsageError: it has another form.
    """
    if not isinstance(values, Mapping) or not all(isinstance(sites, Mapping) for sites in values.values()):
        raise UsageError("fits must be an object of branches, each an object of sites")
    for branch in values:
        if branch not in BRANCHES:
            raise UsageError(f"fits: {branch!r} is no branch; the branches are {' and '.join(BRANCHES)}")
    return {
        branch: {Site.parse(name): _steps(steps, f"{branch} {name}") for name, steps in sites.items()}
        for branch, sites in values.items()
    }


def _steps(values: Any, where: str) -> dict[int, tuple[Term, ...]]:
    if not isinstance(values, Mapping):
        raise UsageError(f"fits of {where} must be an object of steps, not {values!r}")
    found = {}
    for step, terms in values.items():
        if not step.isdecimal():
            raise UsageError(f"fits of {where} name a step {step!r}; give its number")
        if not isinstance(terms, list) or not all(
            isinstance(term, list) and len(term) == len(Term._fields) for term in terms
        ):
            raise UsageError(
                f"fits of {where}: step {step} must be a list of [branch, step, weight], not {terms!r}"
            )
        found[int(step)] = tuple(Term(*term) for term in terms)
    return found
