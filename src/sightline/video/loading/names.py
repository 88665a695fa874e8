"""Renaming of the tensors of a whole part by tables, so that none is lost and none is taken twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sightline.checkpoints.entry import Entry
from sightline.errors import SightlineError
from sightline.video.loading.tensors import Tensors

Table = Sequence[tuple[str, str]]


def swapped(name: str, table: Table) -> str | None:
    """The name with the beginning that a line of the table has replaced by the other of that line.

    A line that does not end with a dot is a whole name. None where no line fits.
    """
    for theirs, ours in table:
        if name == theirs or (theirs.endswith(".") and name.startswith(theirs)):
            return ours + name.removeprefix(theirs)
    return None


def renamed(tensors: Tensors, pairs: Iterable[tuple[str, str | None]], kind: str) -> Tensors:
    """The same tensors by their new names.

    Args:
        pairs: the old and the new name of each; None where there is none.
        kind: what the file was taken for, for messages.

    Raises:
        SightlineError: a tensor has no name there, or two have the same.
    """
    found: dict[str, Entry] = {}
    for old, new in pairs:
        if new is None:
            raise SightlineError(f"{tensors.where} holds {old}, which is no tensor of {kind}")
        if new in found:
            raise SightlineError(f"{tensors.where} holds {new} twice, once as {old}; download it again")
        found[new] = tensors.entries[old]
    return tensors.with_entries(found)


def count(names: Iterable[str], prefix: str) -> int:
    """How many numbered parts there are under a prefix such as `blocks.`; the highest number and one."""
    numbers = [name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)]
    return max((int(number) for number in numbers if number.isdecimal()), default=-1) + 1
