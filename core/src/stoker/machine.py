"""What this process may use of the machine, as the defaults of an executor.

Source: cgroups(7), and the kernel's admin-guide on cgroup-v1 (memory, cpu) and cgroup-v2.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

MEMBERSHIP = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")

_Read = Callable[[Path], float]

_LEAST_RESERVE_BYTES = 1024**3


def usable_processors(membership: Path = MEMBERSHIP, cgroups: Path = CGROUPS) -> float:
    """Processors' worth of time: those that this process may run on, or its cgroup's quota."""
    quotas = (
        *_numbers("cpu", "cpu.max", _quota_v2, membership, cgroups),
        *_numbers("cpu", "cpu.cfs_quota_us", _quota_v1, membership, cgroups),
    )
    return min([float(len(os.sched_getaffinity(0))), *quotas])


def usable_slots() -> int:
    """One for each whole processor."""
    return max(1, int(usable_processors()))


def usable_memory_bytes(membership: Path = MEMBERSHIP, cgroups: Path = CGROUPS) -> int:
    """Memory for actions: that of the machine, or the limit of this process's cgroup.

    A tenth of it, and at least 1 GiB, is kept back for the server and the system; of very little,
    half. As the local strategy does: what actions ask for is not more than they get together.
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = (
        *_numbers("memory", "memory.max", _limit, membership, cgroups),
        *_numbers("memory", "memory.limit_in_bytes", _limit, membership, cgroups),
    )
    total = int(min([physical, *limits]))
    return max(1, total - max(total // 10, _LEAST_RESERVE_BYTES), total // 2)


def shortage(cpus: float, memory_bytes: int) -> str:
    """What of this there is not, in words; empty where there is all of it."""
    usable_cpus, usable_bytes = usable_processors(), usable_memory_bytes()
    if cpus <= usable_cpus and memory_bytes <= usable_bytes:
        return ""
    return (
        f"they have {cpus:g} processors and {memory_bytes} bytes of memory, "
        f"where {usable_cpus:g} and {usable_bytes} can be used"
    )


def _numbers(
    controller: str, name: str, read: _Read, membership: Path, cgroups: Path
) -> Iterator[float]:
    """What `read` finds in the files `name` of this process's cgroup and of those around it."""
    for folder in _folders(controller, membership, cgroups):
        try:
            number = read(folder / name)
        except (OSError, ValueError):
            continue  # a root group, a hierarchy without this controller, or no limit
        if number > 0:
            yield number


def _folders(controller: str, membership: Path, cgroups: Path) -> Iterator[Path]:
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        tops = (controllers, controller) if controllers else ("", "unified")
        group = PurePosixPath(path.lstrip("/"))
        for top in tops:
            yield from (cgroups / top / place for place in (group, *group.parents))


def _limit(file: Path) -> float:
    return float(int(file.read_text(encoding="ascii")))


def _quota_v2(file: Path) -> float:
    quota, period = file.read_text(encoding="ascii").split()
    return int(quota) / int(period)


def _quota_v1(file: Path) -> float:
    period = file.with_name("cpu.cfs_period_us").read_text(encoding="ascii")
    return int(file.read_text(encoding="ascii")) / int(period)
