"""Freed host memory is kept for the next tensor instead of being given back to the kernel and fetched again.

glibc returns large blocks at once, and every new tensor of some MiB then pays for its pages anew: on a virtual machine
a square root over 3 MiB takes 2.6 ms instead of 0.3 ms.
"""

from __future__ import annotations

import ctypes
import functools

# mallopt's parameters (malloc.h), and the largest value that glibc takes for the second.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _TOP_PAD, _ARENA_MAX = -1, -3, -2, -8
_LARGEST_MMAP_THRESHOLD = 32 << 20


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep up to 2 GiB of freed memory for blocks below 32 MiB. Once, for the whole process.

    Returns whether the C library could be told; others than glibc cannot.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = (
        (_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD),
        (_TRIM_THRESHOLD, (1 << 31) - 1),
        (_TOP_PAD, 64 << 20),
        # One heap for all threads: what one frees another may take, and secondary heaps are trimmed regardless.
        (_ARENA_MAX, 1),
    )
    return all(mallopt(name, value) == 1 for name, value in settings)
