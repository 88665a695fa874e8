"""How much memory this process may still take: the machine's, or less where a cgroup limits it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil


class Memory(NamedTuple):
    """Bytes."""

    free: int
    total: int


def of_machine(root: Path = Path("/")) -> Memory:
    """Free and total memory in bytes: the least of the machine's and of every cgroup limit above us.

    Args:
        root: where `proc` and `sys` are mounted.
    """
    machine = psutil.virtual_memory()
    levels = [Memory(machine.available, machine.total), *cgroup_levels(root)]
    return Memory(
        free=max(0, min(level.free for level in levels)), total=min(level.total for level in levels)
    )


def cgroup_levels(root: Path = Path("/")) -> Iterator[Memory]:
    """The limits on this process, from its own cgroup up to the top one; none where nothing is limited."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        # "hierarchy:controllers:path"; version 2 has hierarchy 0 and names no controller.
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            yield from _limits(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            yield from _limits(root / "sys/fs/cgroup/memory", path, *names)


def _limits(top: Path, path: str, limit_name: str, usage_name: str, cache_key: str) -> Iterator[Memory]:
    folder = top / path.lstrip("/")
    # In a container the path is the host's and may not exist here; the levels that do exist still count.
    for level in [folder, *folder.parents]:
        limit = _read_int(level / limit_name)
        if limit is not None:
            used = (_read_int(level / usage_name) or 0) - _cached(level / "memory.stat", cache_key)
            yield Memory(free=limit - max(0, used), total=limit)
        if level == top:
            return


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, or "max": no limit
        return None


def _cached(stat: Path, key: str) -> int:
    """Bytes of file cache that the kernel gives back on demand, which count as used but are free to take."""
    try:
        lines = stat.read_text().splitlines()
    except OSError:
        return 0
    return next((int(value) for name, _, value in (line.partition(" ") for line in lines) if name == key), 0)
