"""Memory limits read from small /proc and /sys trees of cgroup versions 1 and 2."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from sightline.hardware import memory
from sightline.hardware.memory import Memory

GIB = 2**30


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


def test_version_2_limits_of_every_level_count(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/jobs/train",
            "sys/fs/cgroup/jobs/train/memory.max": "max",
            "sys/fs/cgroup/jobs/train/memory.current": GIB,
            "sys/fs/cgroup/jobs/memory.max": 4 * GIB,
            "sys/fs/cgroup/jobs/memory.current": 3 * GIB,
            "sys/fs/cgroup/jobs/memory.stat": f"anon 1\ninactive_file {GIB}\nactive_file 7",
        },
    )
    assert list(memory.cgroup_levels(root)) == [Memory(free=2 * GIB, total=4 * GIB)]


def test_version_1_limit_without_file_cache(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "9:name=systemd:/x\n4:cpu,memory:/box\n0::/",
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": 2 * GIB,
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": GIB,
            "sys/fs/cgroup/memory/box/memory.stat": f"cache 9\ntotal_inactive_file {GIB // 2}",
        },
    )
    assert list(memory.cgroup_levels(root)) == [Memory(free=3 * GIB // 2, total=2 * GIB)]


def test_a_container_sees_its_limit_at_the_top(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/docker/abc",  # the host's path, which does not exist inside
            "sys/fs/cgroup/memory.max": 4 * GIB,
            "sys/fs/cgroup/memory.current": 5 * GIB,
        },
    )
    assert list(memory.cgroup_levels(root)) == [Memory(free=-GIB, total=4 * GIB)]
    machine = psutil.virtual_memory()
    assert memory.of_machine(root) == Memory(free=0, total=min(4 * GIB, machine.total))


def test_an_unlimited_process_has_the_machine(tmp_path: Path) -> None:
    assert list(memory.cgroup_levels(tmp_path)) == []
    found = memory.of_machine(tmp_path)
    assert found.total == psutil.virtual_memory().total
    assert found.free == pytest.approx(psutil.virtual_memory().available, rel=0.5)


def test_this_machine() -> None:
    found = memory.of_machine()
    assert 0 < found.free <= found.total <= psutil.virtual_memory().total
