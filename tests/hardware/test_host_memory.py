"""That the C library is told to keep freed memory, seen from the kernel's count of page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Makes and drops three tensors of 8 MiB, as a layer does, and counts the pages fetched meanwhile.
_COUNT = """
import resource, sys, torch
from sightline.hardware.host_memory import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(20):
    [torch.ones(1 << 21) for _ in range(3)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    [torch.ones(1 << 21) for _ in range(3)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _COUNT, how], capture_output=True, text=True, check=True, timeout=120
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_pages_are_fetched_once() -> None:
    assert faults("kept") < 100 < faults("given back")
