"""What a process may use, read from a machine that is made of files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stoker.machine import usable_memory_bytes, usable_processors, usable_slots

GIB = 1024**3


@pytest.fixture
def cgroups(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def member(tmp_path: Path, *lines: str) -> Path:
    write(tmp_path / "membership", "\n".join(lines))
    return tmp_path / "membership"


def test_version_2_and_the_groups_around(tmp_path: Path, cgroups: Path) -> None:
    membership = member(tmp_path, "0::/system/stoker")
    write(cgroups / "system/stoker/memory.max", "max")
    write(cgroups / "system/memory.max", str(4 * GIB))
    write(cgroups / "system/stoker/cpu.max", "50000 100000")
    write(cgroups / "system/cpu.max", "max 100000")
    assert usable_memory_bytes(membership, cgroups) == 3 * GIB
    assert usable_processors(membership, cgroups) == 0.5


def test_version_1(tmp_path: Path, cgroups: Path) -> None:
    membership = member(tmp_path, "4:memory:/job", "2:cpu,cpuacct:/job", "0::/")
    write(cgroups / "memory/job/memory.limit_in_bytes", str(GIB))
    write(cgroups / "memory/memory.limit_in_bytes", "9223372036854771712")
    write(cgroups / "cpu,cpuacct/job/cpu.cfs_quota_us", "25000")
    write(cgroups / "cpu,cpuacct/job/cpu.cfs_period_us", "100000")
    write(cgroups / "cpu,cpuacct/cpu.cfs_quota_us", "-1")
    write(cgroups / "cpu,cpuacct/cpu.cfs_period_us", "100000")
    assert usable_memory_bytes(membership, cgroups) == GIB // 2
    assert usable_processors(membership, cgroups) == 0.25


def test_a_machine_without_limits(tmp_path: Path, cgroups: Path) -> None:
    membership = tmp_path / "absent"
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    kept_back = physical - usable_memory_bytes(membership, cgroups)
    assert kept_back == min(max(physical // 10, GIB), physical - physical // 2)
    assert usable_processors(membership, cgroups) == len(os.sched_getaffinity(0))


def test_this_machine() -> None:
    assert usable_slots() >= 1
    assert usable_memory_bytes() > 0
