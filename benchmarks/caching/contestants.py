"""Who runs against whom: every peer with a sweep of its own knobs, and the rules that anyone could write."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.errors import SightlineError
from sightline.video.builders import fixed_interval, uncond_only
from sightline.video.plan import Plan
from sightline.video.setting import Setting
from sightline.video.sites import OUTPUT, Action, Site

EXACT = "exact"


@dataclass(frozen=True)
class Contestant:
    """One setting of one method.

    Attributes:
        family, label: as the plot has them.
        kind: `ours`, `baseline` or `peer`.
        engine: the worker that runs it.
        method, knobs: as the engine takes them.
        steps: in place of the run's.
    """

    family: str
    label: str
    kind: str
    engine: str
    method: str
    knobs: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None

    @property
    def name(self) -> str:
        return self.family if not self.label else f"{self.family}: {self.label}"


def references() -> list[Contestant]:
    """The exact runs: ours is held against diffusers', and every contestant's time against its own engine's."""
    return [
        Contestant(EXACT, "diffusers", "peer", "wan_pipeline", EXACT),
        Contestant(EXACT, "ours", "ours", "ours", EXACT),
    ]


def rules(setting: Setting, layers: int, folder: Path, quick: bool) -> list[Contestant]:
    """Fewer steps, fixed intervals and skipping without the prompt: what a search has to beat."""
    steps = setting.steps
    found = [
        Contestant("fewer steps", f"{count} steps", "baseline", "ours", EXACT, steps=count)
        for count in _some([_share(steps, of) for of in (0.8, 0.6, 0.5, 0.4, 0.3, 0.2)], quick)
    ]
    start = _share(steps, 0.1)
    plans = [
        ("fixed interval", f"every {interval}", fixed_interval(setting, interval, start=start))
        for interval in _some([2, 3, 5], quick)
    ]
    if layers > 2:  # without the first and the last block, as the published settings have it
        inner = Site.parse(f"blocks[1:{layers - 1}]")
        plans += [
            (
                "fixed interval, blocks",
                f"every {interval}",
                fixed_interval(setting, interval, start=start, site=inner),
            )
            for interval in _some([2, 4], quick)
        ]
    plans += [
        (
            "fixed interval, line",
            f"every {interval}",
            fixed_interval(setting, interval, start=start, site=OUTPUT, skipped=Action.EXTRAPOLATE),
        )
        for interval in _some([2, 3, 5], quick)
    ]
    plans += [
        ("uncond only", f"every {interval}", uncond_only(setting, interval, start=start))
        for interval in _some([2, 4], quick)
    ]
    for family, label, plan in plans:
        found.append(_planned(family, label, "baseline", plan, folder))
    return found


def searched(plans: Path, setting: Setting) -> list[Contestant]:
    """The plans that a search left in its folder, or any of a folder, or one.

    Raises:
        SightlineError: there are none, or one was found for another generation.
    """
    folder = plans / "plans" if (plans / "plans").is_dir() else plans
    files = sorted(folder.glob("*.json")) if folder.is_dir() else [plans]
    found = []
    for file in files:
        try:
            plan = Plan.load(file)
        except SightlineError:
            if plans.is_file() or not plans.exists():
                raise
            continue  # a folder may hold other JSON, too
        same = Setting(**{**_fields(setting), "steps": plan.steps})
        plan.setting.require(same, whose=str(file))
        label = plan.name or file.stem
        found.append(
            Contestant("searched plans", label, "ours", "ours", "plan", {"path": str(file)}, plan.steps)
        )
    if not found:
        raise SightlineError(f"{plans} holds no plans; run sightline video search with -o {plans}")
    return found


@dataclass(frozen=True)
class Scouted:
    """What has to be found out on this model before a sweep makes sense, on a prompt of the search.

    Attributes:
        ratios: of MagCache, as its calibration printed them; empty leaves it out.
        first_block, dbcache: thresholds that compute all of the calls, about half, few.
    """

    ratios: Sequence[float] = ()
    first_block: Sequence[float] = (0.02, 0.04, 0.08, 0.12, 0.24)
    dbcache: Sequence[float] = (0.04, 0.08, 0.12, 0.2, 0.3)


def diffusers_caches(steps: int, quick: bool, scouted: Scouted) -> Iterator[Contestant]:
    """Every cache of diffusers that runs on Wan."""

    def of(family: str, label: str, method: str, **knobs: Any) -> Contestant:
        return Contestant(family, label, "peer", "wan_pipeline", method, knobs)

    for threshold in _some(scouted.first_block, quick):
        yield of("FirstBlockCache", f"{threshold:.3g}", "first_block", threshold=threshold)
    # Its default names no module of Wan: shown once, for it costs time and saves nothing.
    yield of("TaylorSeer, as it comes", "interval 5", "taylor")
    before = max(3, _share(steps, 0.1))
    for order in _some([1, 2], quick):
        common = {"max_order": order, "disable_cache_before_step": before}
        for interval in _some([2, 3, 5], quick):
            label = f"{interval}, order {order}"
            yield of("TaylorSeer", label, "taylor", cache_interval=interval, parts=True, **common)
        for interval in _some([2, 3, 4, 6], quick):
            label = f"{interval}, order {order}"
            yield of(
                "TaylorSeer lite", label, "taylor", cache_interval=interval, use_lite_mode=True, **common
            )
    for retention in _some([0.2, 0.1, 0.05], quick) if scouted.ratios else ():
        for threshold, most in _some([(0.06, 2), (0.06, 3), (0.24, 5), (1.0, 8)], quick):
            yield of(
                "MagCache",
                f"{threshold:g}, {most}, {retention:g}",
                "mag",
                threshold=threshold,
                max_skip_steps=most,
                retention_ratio=retention,
                mag_ratios=list(scouted.ratios),
            )
    for order in _some([0, 1], quick):
        for threshold, most in _some([(0.1, 1), (0.2, 2), (0.3, 2), (0.5, 3), (0.8, 5), (1.2, 8)], quick):
            knobs = {"threshold": threshold, "max_consecutive_cached": most, "residual_order": order}
            yield of("SeaCache", f"{threshold:g}, {most}, order {order}", "sea", **knobs)


def cache_dit(steps: int, quick: bool, scouted: Scouted) -> Iterator[Contestant]:
    """cache-dit: its own step masks, and DBCache by thresholds, each with its forecaster and without."""

    def of(family: str, label: str, method: str, **knobs: Any) -> Contestant:
        return Contestant(family, label, "peer", "cache_dit", method, {"Fn_compute_blocks": 1, **knobs})

    for order in (None, 1):
        tail = "" if order is None else " + TaylorSeer"
        forecast = {} if order is None else {"taylorseer_order": order}
        for policy in _some(["slow", "medium", "fast", "ultra"], quick):
            knobs = {"mask_policy": policy, "steps_computation_policy": "static", **forecast}
            yield of(f"cache-dit SCM{tail}", policy, "scm", **knobs)
        for threshold in _some(scouted.dbcache, quick):
            knobs = {
                "residual_diff_threshold": threshold,
                "max_warmup_steps": _share(steps, 0.08),
                **forecast,
            }
            yield of(f"cache-dit DBCache{tail}", f"{threshold:.3g}", "dbcache", **knobs)


def _planned(family: str, label: str, kind: str, plan: Plan, folder: Path) -> Contestant:
    path = folder / f"{family} {label}.json".replace(" ", "-").replace(",", "")
    plan.save(path)
    return Contestant(family, label, kind, "ours", "plan", {"path": str(path)})


def _fields(setting: Setting) -> dict[str, Any]:
    return {name: getattr(setting, name) for name in setting.__dataclass_fields__}


def _share(steps: int, of: float) -> int:
    return max(1, round(steps * of))


def _some(values: Sequence[Any], quick: bool) -> list[Any]:
    """A short run takes one of the middle."""
    return [values[len(values) // 2]] if quick else list(dict.fromkeys(values))
