"""OpenMP's threads belong to the thread that started them; those of one that computes no more are in the way.

libgomp lets threads wait by spinning as long as there are no more of them than processors. A process that has loaded
a model in one thread and computes in another keeps two teams, the spinning ends, and every parallel loop pays for
waking its threads: a decode step then takes a third longer, and attention to short contexts several times as long.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

_HARD = 2  # omp_pause_hard: give the threads back to the system


def release_threads() -> bool:
    """End the idle OpenMP threads of the calling thread; its next parallel loop makes new ones.

    Returns whether there was a libgomp that could be asked.
    """
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:  # not Linux
        return False
    names = {line.rpartition(" ")[2] for line in maps if "libgomp" in line}
    released = False
    for name in names:
        try:
            released |= ctypes.CDLL(name).omp_pause_resource_all(_HARD) == 0
        except (OSError, AttributeError):  # replaced while running, or before OpenMP 5
            continue
    return released
