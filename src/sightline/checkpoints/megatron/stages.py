"""Which layers stand on which pipeline stage.

A list of layers per pipeline rank, nested once more where stages are virtual: the outer list by virtual index v, the
inner by rank p. Stages follow one another as v * pp + p; model chunk v of rank p is that stage.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sightline.errors import SightlineError, UsageError


@dataclass(frozen=True)
class Stages:
    """Layers of one part of a model (tower or language model) by [virtual][rank]."""

    counts: tuple[tuple[int, ...], ...]

    @classmethod
    def parse(cls, given: str | Sequence[object], option: str) -> Stages:
        """`12,16`, `[12,16]` or `[[4,4],[4,4]]`.

        Raises:
            UsageError: not such a list, or the inner lists differ in length.
        """
        value: Any = given
        if isinstance(given, str):
            text = given.strip()
            try:
                value = json.loads(text if text.startswith("[") else f"[{text}]")
            except ValueError as error:
                raise UsageError(f"{option} is {given!r}; write it like 12,16 or [[4,4],[4,4]]") from error
        rows: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value]
        if len({isinstance(row, (list, tuple)) for row in rows}) > 1:
            raise UsageError(
                f"{option} is {given!r}; it must hold either numbers or lists, like [[4,4],[4,4]]"
            )
        nested = [row if isinstance(row, (list, tuple)) else [row] for row in rows]
        if not any(isinstance(row, (list, tuple)) for row in rows):
            nested = [list(rows)]
        numbers = [number for row in nested for number in row]
        if not numbers or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
            raise UsageError(f"{option} is {given!r}; it must hold whole numbers from 0, like 12,16")
        if len({len(row) for row in nested}) != 1:
            lengths = ", ".join(str(len(row)) for row in nested)
            raise UsageError(f"{option} has virtual stages of {lengths} ranks; each must name every rank")
        return cls(tuple(tuple(int(number) for number in row) for row in nested))

    @property
    def ranks(self) -> int:
        """Pipeline ranks."""
        return len(self.counts[0])

    @property
    def chunks(self) -> int:
        """Virtual stages of each rank."""
        return len(self.counts)

    @property
    def flat(self) -> tuple[int, ...]:
        return tuple(count for row in self.counts for count in row)

    @property
    def total(self) -> int:
        return sum(self.flat)

    @property
    def first(self) -> int:
        """The first stage that has a layer."""
        return next(stage for stage, count in enumerate(self.flat) if count)

    @property
    def last(self) -> int:
        """The last stage that has one."""
        return max(stage for stage, count in enumerate(self.flat) if count)

    def layers(self, stage: int) -> range:
        """The layers of the model that stand on a stage; there they are counted from 0 again."""
        before = sum(self.flat[:stage])
        return range(before, before + self.flat[stage])

    def __str__(self) -> str:
        return json.dumps([list(row) for row in self.counts]).replace(" ", "")


@dataclass(frozen=True)
class Pipeline:
    """The stages of tower and language model; both have the same ranks and chunks."""

    text: Stages
    vision: Stages

    def check(self, text_layers: int, vision_layers: int) -> None:
        """Whether a model of so many layers can be laid out and trained so.

        Raises:
            UsageError: the text says which list and number.
        """
        for option, stages, total in (
            ("--pp-llm", self.text, text_layers),
            ("--pp-vit", self.vision, vision_layers),
        ):
            if stages.total != total:
                raise UsageError(f"{option} {stages} holds {stages.total} layers, but the model has {total}")
        if (self.text.ranks, self.text.chunks) != (self.vision.ranks, self.vision.chunks):
            raise UsageError(
                f"--pp-llm {self.text} has {self.text.chunks} x {self.text.ranks} stages and --pp-vit "
                f"{self.vision} {self.vision.chunks} x {self.vision.ranks}; give each a number for every stage, "
                "0 where it has no layer"
            )
        if self.vision.last > self.text.first:
            raise UsageError(
                f"--pp-vit {self.vision} ends at stage {self.vision.last}, behind stage {self.text.first} where "
                f"--pp-llm {self.text} begins; the tower must be through when the language model starts"
            )

    def empty_stages(self) -> list[int]:
        """Stages behind the language model's first that have none of its layers; training stops there."""
        counts = self.text.flat
        return [stage for stage in range(self.text.first, len(counts)) if not counts[stage]]


def balanced(pp: int, layer_bytes: Sequence[Sequence[int]], fixed: tuple[int, int]) -> Pipeline:
    """Stages of about the same bytes: the tower from the front, the language model behind it.

    Args:
        layer_bytes: of each tower layer, of each layer of the language model.
        fixed: bytes of what stands before the language model's first layer (embedding) and behind its last (head).

    Raises:
        SightlineError: fewer layers than stages.
    """
    vision, text = (list(sizes) for sizes in layer_bytes)
    if len(text) < 1 or len(vision) + len(text) < pp:
        raise SightlineError(f"{len(vision) + len(text)} layers cannot fill {pp} stages; use fewer")
    weights = [*vision, *text]
    weights[len(vision)] += fixed[0]
    weights[-1] += fixed[1]
    ends = _balanced_ends(weights, pp)
    counts: list[tuple[int, int]] = []
    begin = 0
    for end in ends:
        tower = max(0, min(end, len(vision)) - begin)
        counts.append((tower, end - begin - tower))
        begin = end
    return Pipeline(
        Stages((tuple(text_count for _, text_count in counts),)),
        Stages((tuple(tower for tower, _ in counts),)),
    )


def _balanced_ends(weights: Sequence[int], parts: int) -> list[int]:
    """Where to cut a row of weights into non-empty parts so that the heaviest is as light as can be."""
    sums = [0]
    for weight in weights:
        sums.append(sums[-1] + weight)
    count = len(weights)
    # best[k][i]: the heaviest of k parts over the first i weights, and where the last of them begins.
    best = [[(0, 0)] * (count + 1)]
    best[0] = [(0, 0)] + [(sums[-1] + 1, 0)] * count
    for part in range(1, parts + 1):
        row = [(sums[-1] + 1, 0)] * (count + 1)
        for end in range(part, count + 1):
            row[end] = min(
                (max(best[part - 1][begin][0], sums[end] - sums[begin]), begin)
                for begin in range(part - 1, end)
            )
        best.append(row)
    ends, end = [], count
    for part in range(parts, 0, -1):
        ends.append(end)
        end = best[part][end][1]
    return ends[::-1]
