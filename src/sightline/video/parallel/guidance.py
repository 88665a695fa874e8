"""Guidance on two groups of cards: each computes one branch, and both hold both velocities before the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sightline.errors import SightlineError
from sightline.video.sites import BRANCHES

if TYPE_CHECKING:
    from torch import Tensor

    from sightline.video.parallel.layout import Layout
    from sightline.video.plan import Plan


def exchanged(velocities: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Both branches' velocities, of this rank's own.

    What the other group computed is taken as it is, so the guided velocity, and with it the latents, are the same bits
    everywhere. A rank sends its velocity once: for Wan2.1 at 832x480x81 in bf16, 4.2 MB a step.

    Raises:
        SightlineError: this rank computed another branch than its own.
    """
    import torch
    import torch.distributed as dist

    if tuple(velocities) != layout.branches:
        raise SightlineError(
            f"rank {layout.rank} computes {' and '.join(layout.branches)}, but gave {' and '.join(velocities)}"
        )
    (own,) = velocities.values()
    own = own.contiguous()
    both = [torch.empty_like(own) for _ in BRANCHES]
    dist.all_gather(both, own, group=layout.cfg_group)
    return dict(zip(BRANCHES, both, strict=True))


def check_plan(plan: Plan, layout: Layout) -> None:
    """Refuse a plan that makes one branch of the other, which another group of cards holds.

    Raises:
        SightlineError: with the sizes that carry it out.
    """
    crossing = any(
        term.branch != branch
        for branch, sites in plan.fits.items()
        for fits in sites.values()
        for terms in fits.values()
        for term in terms
    )
    if layout.cfg > 1 and crossing:
        raise SightlineError(
            f"plan {plan.name!r} makes one guidance branch of the other, which the other group of cards holds: give "
            f"--ulysses-size {layout.world} --cfg-size 1, or another plan"
        )
