"""`CacheConfig`: a step cache told by intervals, as users of MindIE SD write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from sightline.errors import UsageError
from sightline.video.builders import exact, fixed_interval
from sightline.video.plan import Plan
from sightline.video.setting import Setting
from sightline.video.sites import Kind, Site

Method = Literal["dit_block_cache", "attention_cache"]


@dataclass(frozen=True)
class CacheConfig:
    """Which steps take which blocks from earlier steps.

    A step is reused when `step_start < step <= step_end` and `(step - step_start) % step_interval != 0`; of the
    blocks, those with `block_start <= block < block_end`. Ends past the last step or block mean that one.

    Attributes:
        method: `dit_block_cache` keeps what the range of blocks changes in its input; `attention_cache` keeps each
            call's output.
        blocks_count: calls of `CacheAgent.apply` in a step.
        steps_count: steps in a generation.

    Raises:
        UsageError: a value that cannot mean anything, with its name.
    """

    method: Method
    blocks_count: int
    steps_count: int
    step_start: int = 0
    step_interval: int = 1
    step_end: int = 10000
    block_start: int = 0
    block_end: int = 10000

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise UsageError(f"method must be {' or '.join(get_args(Method))}, not {self.method!r}")
        for name in ("blocks_count", "steps_count", "step_interval"):
            self._at_least(name, 1)
        for name in ("step_start", "block_start"):
            self._at_least(name, 0)
        for kind in ("step", "block"):
            start, end = getattr(self, f"{kind}_start"), f"{kind}_end"
            self._at_least(end, 0)
            if getattr(self, end) < start:
                raise UsageError(
                    f"{end} ({getattr(self, end)}) is before {kind}_start ({start}); make it larger"
                )

    @property
    def blocks(self) -> range:
        """The blocks that are kept; empty where the range begins past the last block."""
        return range(self.block_start, min(self.block_end, self.blocks_count))

    def plan(self) -> Plan:
        """The same as a plan, both branches alike."""
        setting = Setting(steps=self.steps_count)
        if not self.blocks:
            return exact(setting)
        kind = Kind.BLOCKS if self.method == "dit_block_cache" else Kind.ATTENTION
        site = Site(kind, self.blocks.start, self.blocks.stop)
        return fixed_interval(
            setting, self.step_interval, start=self.step_start, end=self.step_end, site=site
        )

    def _at_least(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if type(value) is not int or value < least:
            raise UsageError(f"{name} must be a whole number of {least} or more, not {value!r}")
