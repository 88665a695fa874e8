"""Seeds that are drawn, once for a video: a batch that goes on takes them from the JSON that is there."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sightline.errors import SightlineError
from sightline.video.prompts import Row
from sightline.video.writing.record import Record
from sightline.video.writing.save import record_path

DRAWN = -1  # what stands for a seed that is to be drawn, as in Wan's own command


def draw() -> int:
    """A seed that nobody can foresee, from 0 to 2**31 - 1."""
    return random.SystemRandom().randrange(2**31)


def seeds_of(
    rows: Sequence[Row],
    paths: Mapping[int, Sequence[Path]],
    settings: Mapping[str, Any],
    *,
    afresh: bool = False,
) -> dict[int, int]:
    """The seeds of rows that are to draw one, by line.

    A row that says -1 draws its own; those that take -1 from `settings` share one. What was drawn before is taken from
    the videos that are there, so that an interrupted batch goes on with the same.

    Args:
        paths: of each line's videos, which have the row's seed and those after it.
        afresh: draw all the same.
    """
    shared = [row for row in rows if "seed" not in row.settings] if settings.get("seed") == DRAWN else []
    found = {} if afresh else {row.line: _drawn(paths[row.line]) for row in rows}
    known = [seed for row in shared if (seed := found.get(row.line)) is not None]
    one = known[0] if known else draw()
    seeds = {row.line: one if found.get(row.line) is None else found[row.line] for row in shared}
    for row in rows:
        if row.settings.get("seed") == DRAWN:
            seed = found.get(row.line)
            seeds[row.line] = draw() if seed is None else seed
    return {line: seed for line, seed in seeds.items() if seed is not None}


def _drawn(paths: Sequence[Path]) -> int | None:
    """What the first of a row's videos has, as the first JSON that can be read tells it."""
    for copy, path in enumerate(paths):
        try:
            seed = Record.read(record_path(path)).request.seed - copy
        except SightlineError:  # none, or a damaged one, of which the batch itself speaks
            continue
        return seed if seed >= 0 else None
    return None
