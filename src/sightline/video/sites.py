"""Where in a diffusion transformer something can be kept from one step to the next, and what a step does there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from sightline.errors import UsageError

BRANCHES = ("cond", "uncond")
_FORM = re.compile(r"(output|(blocks|attention)\[(\d{1,6}):(\d{1,6})\])")


class Action(str, Enum):
    """What a step does at a site. The letter is how a plan's file writes it."""

    COMPUTE = "C"
    REUSE = "R"
    EXTRAPOLATE = "E"
    FIT = "F"


class Kind(str, Enum):
    """What is kept at a site: the model's output; the change that a range of blocks makes to its input; the
    self-attention output of each block of a range."""

    OUTPUT = "output"
    BLOCKS = "blocks"
    ATTENTION = "attention"


@dataclass(frozen=True, order=True)
class Site:
    """A place in the model: blocks `start <= block < stop`; the output has no range.

    Raises:
        UsageError: an empty range.
    """

    kind: Kind
    start: int = 0
    stop: int = 0

    def __post_init__(self) -> None:
        if self.kind is not Kind.OUTPUT and not 0 <= self.start < self.stop:
            raise UsageError(f"site {self} has no block in it; write {self.kind.value}[first:last+1]")

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read `output`, `blocks[1:29]` or `attention[0:30]`.

        Raises:
            UsageError: it is written otherwise.
        """
        found = _FORM.fullmatch(text)
        if not found:
            raise UsageError(f"{text!r} is no site; write output, blocks[a:b] or attention[a:b]")
        if found[1] == "output":
            return OUTPUT
        return cls(Kind(found[2]), int(found[3]), int(found[4]))

    def __str__(self) -> str:
        return "output" if self.kind is Kind.OUTPUT else f"{self.kind.value}[{self.start}:{self.stop}]"

    def overlaps(self, other: Site) -> bool:
        """Whether the two would keep the same thing twice."""
        if self.kind is not other.kind:
            return False
        return self.kind is Kind.OUTPUT or (self.start < other.stop and other.start < self.stop)

    def parts(self) -> list[Site]:
        """What is kept apart: attention block by block, the others whole."""
        if self.kind is not Kind.ATTENTION:
            return [self]
        return [Site(Kind.ATTENTION, block, block + 1) for block in range(self.start, self.stop)]

    def inside(self, other: Site) -> bool:
        """Whether this part is skipped where `other` is not computed."""
        if other.kind is Kind.OUTPUT:
            return self.kind is not Kind.OUTPUT
        attention_of = self.kind is Kind.ATTENTION and other.kind is Kind.BLOCKS
        return attention_of and other.start <= self.start and self.stop <= other.stop


OUTPUT = Site(Kind.OUTPUT)
