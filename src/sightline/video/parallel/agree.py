"""Ranks that say the same: what rank 0 knows for all, and whether all are about to generate the same video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sightline.errors import SightlineError

if TYPE_CHECKING:
    from sightline.video.parallel.layout import Layout
    from sightline.video.plan import Plan
    from sightline.video.request import Request
    from sightline.video.setting import Setting

_LONGEST = 40  # characters of a value in a message


def facts(request: Request, setting: Setting, plan: Plan | None) -> dict[str, str]:
    """What has to be the same on every rank, by name."""
    named = {name.replace("_", " "): repr(value) for name, value in asdict(request).items()}
    # Cards of two kinds round differently, and so do two versions of a library.
    named |= {name: str(getattr(setting, name)) for name in ("weights", "dtype", "device")}
    named |= {f"version of {library}": version for library, version in setting.versions.items()}
    return named | {"plan": "none" if plan is None else _digest(plan)}


def require_same(layout: Layout, facts: Mapping[str, str]) -> None:
    """Compare with all other ranks, in one exchange.

    Raises:
        SightlineError: on every rank alike, what differs and where.
    """
    if layout.world == 1:
        return
    import torch.distributed as dist

    everyone: list[Any] = [None] * layout.world
    dist.all_gather_object(everyone, dict(facts), group=layout.everyone)
    names = dict.fromkeys(name for each in everyone for name in each)
    different = [name for name in names if len({each.get(name) for each in everyone}) > 1]
    if not different:
        return
    said = "; ".join(_told(name, [each.get(name, "absent") for each in everyone]) for name in different)
    raise SightlineError(
        f"the ranks are not asked for the same video: {said}; start every rank with the same model, options and plan"
    )


def as_said(layout: Layout, value: Any) -> Any:
    """What rank 0 of a layout has as this value, on every rank of it."""
    if layout.world == 1:
        return value
    import torch.distributed as dist

    group = layout.everyone or dist.group.WORLD
    assert group is not None
    said = [value]
    dist.broadcast_object_list(said, src=dist.get_global_rank(group, 0), group=group)
    return said[0]


def _told(name: str, values: Sequence[str]) -> str:
    """`seed (1 on ranks 0 and 2, 3 on rank 1)`"""
    holders: dict[str, list[str]] = {}
    for rank, value in enumerate(values):
        holders.setdefault(value, []).append(str(rank))
    parts = []
    for value, ranks in holders.items():
        short = value if len(value) <= _LONGEST else value[: _LONGEST - 3] + "..."
        parts.append(f"{short} on rank{'s' if len(ranks) > 1 else ''} {' and '.join(ranks)}")
    return f"{name} ({', '.join(parts)})"


def _digest(plan: Plan) -> str:
    """A plan's name, and a hash of all that it says."""
    import hashlib
    import json

    text = json.dumps(plan.to_json(), sort_keys=True)
    return f"{plan.name or 'a plan'} {hashlib.sha256(text.encode()).hexdigest()[:12]}"
