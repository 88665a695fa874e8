"""What a step of the CPU's attention reads: where each sequence lies in the cache, and which are read together."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from sightline.hardware.operators.attention.paged import Piece, Plan, packed_slots, runs

# Sequences are batched whose lengths differ by no more than so many tokens; those are copied.
_MOST_REST = 128

Run = tuple[int, int]  # first slot and number of tokens


@dataclass
class Batch:
    """Decoding sequences that are attended to together.

    Attributes:
        rows: their places in the packed step, neighbours.
        parts: the runs of each of them: as many, and of one length but for the last.
        distances: slots from one sequence's run to the next one's, for each run.
        rest: slots of the tokens that the longer ones have beyond the shortest, int64 [sequences * most], filled up
            with a slot of the sequence's own; `unseen` is True there, [sequences, 1, most]. A short last run behind
            another one (an answer behind a cached prompt) is rest as a whole: one part less to multiply.
    """

    rows: slice
    parts: list[list[Run]]
    distances: list[int] = field(default_factory=list)
    rest: torch.Tensor | None = None
    unseen: torch.Tensor | None = None

    @property
    def runs(self) -> list[Run]:
        """What is read in place of the first sequence: its runs, the last one as short as the shortest."""
        *equal, (first, _) = self.parts[0]
        return [*equal, (first, self._in_place)] if self._in_place else equal

    @property
    def _in_place(self) -> int:
        """Tokens of the last run that are not rest."""
        lengths = [part[-1][1] for part in self.parts]
        return 0 if len(self.parts[0]) > 1 and max(lengths) <= _MOST_REST else min(lengths)

    def take(self, parts: list[Run]) -> bool:
        """Add the next row's sequence if it is like the others."""
        first, count = self.parts[0], len(self.parts)
        if len(parts) != len(first) or any(
            one[1] != two[1] for one, two in zip(parts[:-1], first[:-1], strict=True)
        ):
            return False
        steps = [at - start for (start, _), (at, _) in zip(first, parts, strict=True)]
        if min(steps) < 0 or (count > 1 and steps != [count * distance for distance in self.distances]):
            return False
        lengths = [part[-1][1] for part in [*self.parts, parts]]
        if max(lengths) - min(lengths) > _MOST_REST:
            return False
        self.distances = self.distances or steps
        self.parts.append(parts)
        self.rows = slice(self.rows.start, self.rows.stop + 1)
        return True

    def finish(self) -> None:
        """Note what is beyond the shortest, when all are there."""
        lengths = torch.tensor([part[-1][1] for part in self.parts])
        shortest = self._in_place
        most = int(lengths.max()) - shortest
        if most:
            places = torch.arange(shortest, shortest + most).expand(len(lengths), -1)
            firsts = torch.tensor([part[-1][0] for part in self.parts])
            self.rest = (torch.minimum(places, lengths[:, None] - 1) + firsts[:, None]).flatten()
            self.unseen = (places >= lengths[:, None])[:, None]


@dataclass
class CpuPlan(Plan):
    """Adds what decodes, in batches, and each chunk of a prompt with the runs of its context."""

    batches: list[Batch] = field(default_factory=list)
    chunks: list[tuple[slice, list[Run]]] = field(default_factory=list)


def make_plan(pieces: list[Piece], block_size: int) -> CpuPlan:
    """Decoding tokens in batches, and chunks of prompts, in the order of the packed step."""
    plan = CpuPlan(
        pieces=pieces,
        tokens=sum(piece.length for piece in pieces),
        arrays={"slots": packed_slots(pieces, block_size)},
    )
    start = 0
    for piece in pieces:
        part = slice(start, start + piece.length)
        if piece.length > 1:
            plan.chunks.append((part, runs(piece.table, piece.context, block_size)))
        else:
            seen = runs(piece.table, piece.end, block_size)
            last = plan.batches[-1] if plan.batches else None
            if last is None or last.rows.stop != start or not last.take(seen):
                plan.batches.append(Batch(part, [seen]))
        start += piece.length
    for batch in plan.batches:
        batch.finish()
    return plan
