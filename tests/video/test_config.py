"""`CacheConfig`: the rule of steps and blocks, against the schedules that its users know."""

from __future__ import annotations

from typing import Any

import pytest

from sightline.errors import UsageError
from sightline.video.config import CacheConfig
from sightline.video.sites import Action, Site


def reused(config: CacheConfig, branch: str = "cond") -> list[int]:
    (row,) = config.plan().actions[branch].values()
    return [step for step, action in enumerate(row) if action is Action.REUSE]


@pytest.mark.parametrize("method", ["dit_block_cache", "attention_cache"])
@pytest.mark.parametrize(
    ("start", "interval", "end", "steps", "count"),
    # How many steps are reused in the schedules that are in use for Wan.
    [(12, 4, 37, 40, 19), (20, 2, 47, 50, 14), (2, 5, 45, 50, 35)],
)
def test_the_known_schedules(
    method: Any, start: int, interval: int, end: int, steps: int, count: int
) -> None:
    config = CacheConfig(method, 30, steps, start, interval, end)
    assert len(reused(config)) == count
    rule = [step for step in range(steps) if start < step <= end and (step - start) % interval != 0]
    assert reused(config) == reused(config, "uncond") == rule


def test_the_call_of_the_documentation() -> None:
    config = CacheConfig(
        method="dit_block_cache",
        blocks_count=38,
        steps_count=50,
        step_start=20,
        step_interval=2,
        step_end=47,
        block_start=10,
        block_end=30,
    )
    assert list(config.plan().actions["cond"]) == [Site.parse("blocks[10:30]")]
    assert reused(config) == list(range(21, 48, 2))


@pytest.mark.parametrize("method", ["dit_block_cache", "attention_cache"])
def test_defaults_mean_to_the_last_block_and_step(method: Any) -> None:
    config = CacheConfig(method, blocks_count=4, steps_count=7, step_interval=3)
    assert config.blocks == range(0, 4)
    assert reused(config) == [1, 2, 4, 5]


@pytest.mark.parametrize("method", ["dit_block_cache", "attention_cache"])
def test_step_end_is_the_last_step_that_may_be_reused(method: Any) -> None:
    assert reused(CacheConfig(method, 4, 10, step_interval=2, step_end=5)) == [1, 3, 5]
    assert reused(CacheConfig(method, 4, 10, step_interval=2, step_end=6)) == [1, 3, 5]


@pytest.mark.parametrize(
    "nothing",
    [
        {"step_start": 7},
        {"step_start": 3, "step_end": 3},
        {"step_interval": 1},
        {"block_start": 4},
        {"block_start": 2, "block_end": 2},
    ],
)
def test_a_range_with_nothing_in_it_reuses_nothing(nothing: dict[str, int]) -> None:
    config = CacheConfig(
        **({"method": "dit_block_cache", "blocks_count": 4, "steps_count": 7, "step_interval": 2} | nothing)
    )
    rows = [row for sites in config.plan().actions.values() for row in sites.values()]
    assert all(action is Action.COMPUTE for row in rows for action in row)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "block_cache"}, "method must be dit_block_cache or attention_cache, not 'block_cache'"),
        ({"blocks_count": 0}, "blocks_count must be a whole number of 1 or more, not 0"),
        ({"steps_count": -1}, "steps_count must be a whole number of 1 or more"),
        ({"step_interval": 0}, "step_interval must be a whole number of 1 or more"),
        ({"step_start": -1}, "step_start must be a whole number of 0 or more"),
        ({"block_start": 1.5}, "block_start must be a whole number of 0 or more, not 1.5"),
        ({"step_start": True}, "step_start must be a whole number of 0 or more, not True"),
        ({"step_start": 5, "step_end": 4}, r"step_end \(4\) is before step_start \(5\); make it larger"),
        ({"block_start": 3, "block_end": 2}, r"block_end \(2\) is before block_start \(3\)"),
    ],
)
def test_what_cannot_mean_anything_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CacheConfig(**({"method": "dit_block_cache", "blocks_count": 4, "steps_count": 8} | change))
