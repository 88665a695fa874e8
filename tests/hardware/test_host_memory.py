"""That the C library is told to keep freed memory, seen from what the process holds afterwards."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Makes and drops a tensor of 30 MiB, and prints how many MiB the process holds more than before.
_COUNT = """
import os, sys, torch
from sightline.hardware.host_memory import keep_freed_memory
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
torch.ones(8)
if sys.argv[1] == "kept":
    assert keep_freed_memory()
before = resident()
torch.ones(30 << 18)
print(resident() - before)
"""


def held(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _COUNT, how], capture_output=True, text=True, check=True, timeout=120
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_memory_is_kept() -> None:
    assert held("kept") >= 28
    assert held("given back") < 5
