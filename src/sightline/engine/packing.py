"""How a step's chunks and media are put together for the runner: who lies beside whom. No tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sightline.models.adapters.low_rank import Group

if TYPE_CHECKING:
    from sightline.engine.scheduling.request import Request, Span
    from sightline.engine.scheduling.step import Chunk, Step
    from sightline.models.adapters.loader import LoadedAdapter

#: A request and an index into its media.
Seen = tuple["Request", int]

# Media are encoded together up to so many patches: more save no time, and their intermediate results leave the caches.
_PATCHES_TOGETHER = 1024


def by_adapter(chunks: list[Chunk]) -> tuple[list[Chunk], list[Group]]:
    """A step's chunks with those of one adapter together, those of the base first; and the rows of each adapter.

    The order of adapters is the same in all steps.
    """
    base: list[Chunk] = []
    by_key: dict[str, tuple[LoadedAdapter, list[Chunk]]] = {}
    for chunk in chunks:
        adapted = chunk.sequence.request.adapted
        if adapted is None or adapted.layers is None:
            base.append(chunk)
        else:
            by_key.setdefault(adapted.key, (adapted, []))[1].append(chunk)
    ordered, groups = base, []
    start = sum(len(chunk.tokens) for chunk in base)
    for _, (adapted, own) in sorted(by_key.items()):
        end = start + sum(len(chunk.tokens) for chunk in own)
        assert adapted.layers is not None
        groups.append(Group(slice(start, end), adapted.layers))
        ordered = ordered + own
        start = end
    return ordered, groups


def rows_in(packed: list[Chunk], wanted: list[Chunk]) -> list[int]:
    """Where the rows of `wanted`, chunk after chunk, lie in rows that are packed in another order."""
    starts = {}
    start = 0
    for chunk in packed:
        starts[chunk.sequence] = start
        start += len(chunk.tokens)
    rows: list[int] = []
    for chunk in wanted:
        first = starts[chunk.sequence]
        rows += range(first, first + len(chunk.tokens))
    return rows


def encoded_together(encode: list[Seen]) -> Iterator[tuple[Any, list[Seen]]]:
    """A step's media in groups that are encoded at once, each with the tower that sees it; None is the base's."""
    towers: dict[Any, list[Seen]] = {}
    for request, index in encode:
        tower = None if request.adapted is None else request.adapted.tower
        towers.setdefault(tower, []).append((request, index))
    for tower, seen in towers.items():
        for group in _limited(seen):
            yield tower, group


def visible(step: Step) -> Iterator[tuple[int, Chunk, Span, int, int]]:
    """Every span that a chunk touches: (packed place of the chunk, chunk, span, from, to), tokens of the prompt."""
    first = 0
    for chunk in step.chunks:
        end = chunk.start + len(chunk.tokens)
        for span in chunk.sequence.request.spans:
            if span.start < end and chunk.start < span.start + span.length:
                yield first, chunk, span, max(span.start, chunk.start), min(span.start + span.length, end)
        first += len(chunk.tokens)


def _limited(encode: list[Seen]) -> Iterator[list[Seen]]:
    group: list[Seen] = []
    patches = 0
    for request, index in encode:
        assert request.encoded is not None, f"request {request.id} came without its tensors"
        more = len(request.encoded.media[index].patches)
        if group and patches + more > _PATCHES_TOGETHER:
            yield group
            group, patches = [], 0
        group.append((request, index))
        patches += more
    if group:
        yield group
