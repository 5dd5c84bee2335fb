"""The control groups of a container, seen from outside of it, in version 1 or 2."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Mount:
    """Where a hierarchy is mounted: version 2 has one, without names of controllers."""

    controllers: frozenset[str]
    root: str
    point: str


@dataclass(frozen=True, slots=True)
class Measures:
    """Counters of a container's groups, which only grow; None where nobody counts."""

    user_seconds: float | None
    system_seconds: float | None
    oom_kills: int
    process_refusals: int


class ContainerGroups:
    """What can be read, and told, of the processes of one container. Blocks for moments."""

    def __init__(self, paths: dict[str, Path], version: int) -> None:
        self._paths = paths
        self._version = version

    @property
    def controllers(self) -> frozenset[str]:
        """Those there are of memory, pids and cpu."""
        return frozenset(self._paths)

    def members(self) -> list[int]:
        """The processes, by their numbers out here."""
        text = _read(self._any_path() / "cgroup.procs")
        return [int(number) for number in text.split()]

    def signal_all_but(self, spared: frozenset[int], number: signal.Signals) -> bool:
        """Send a signal to all other members. Returns whether there was one."""
        others = [pid for pid in self.members() if pid not in spared]
        for pid in others:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return bool(others)

    def hold_still(self) -> None:
        """Let no process start another one, where that can be done."""
        self._try_write("pids", "pids.max", "0")

    def release(self, processes: int | None) -> None:
        """Undo `hold_still`, with the limit that was there."""
        self._try_write("pids", "pids.max", "max" if processes is None else str(processes))

    def measure(self) -> Measures:
        """The counters now."""
        user, system = self._cpu_seconds()
        events = "memory.events" if self._version == 2 else "memory.oom_control"
        return Measures(
            user,
            system,
            self._entry("memory", events, "oom_kill"),
            self._entry("pids", "pids.events", "max"),
        )

    def forget_peak(self) -> None:
        """Count the most memory anew; version 2 cannot."""
        if self._version == 1:
            self._try_write("memory", "memory.max_usage_in_bytes", "0")

    def peak_memory_bytes(self) -> int | None:
        """The most memory that was in use since `forget_peak`."""
        name = "memory.peak" if self._version == 2 else "memory.max_usage_in_bytes"
        return self._number("memory", name)

    def memory_bytes(self) -> int | None:
        """What is in use now, but for files that may be dropped at any time."""
        used = self._number(
            "memory", "memory.current" if self._version == 2 else "memory.usage_in_bytes"
        )
        if used is None:
            return None
        idle = self._entry(
            "memory",
            "memory.stat",
            "inactive_file" if self._version == 2 else "total_inactive_file",
        )
        return max(used - idle, 0)

    def _cpu_seconds(self) -> tuple[float | None, float | None]:
        if self._version == 2:
            user = self._entry("cpuacct", "cpu.stat", "user_usec")
            system = self._entry("cpuacct", "cpu.stat", "system_usec")
            return user / 1e6, system / 1e6
        if "cpuacct" not in self._paths:
            return None, None
        user_ns = self._number("cpuacct", "cpuacct.usage_user") or 0
        system_ns = self._number("cpuacct", "cpuacct.usage_sys") or 0
        return user_ns / 1e9, system_ns / 1e9

    def _any_path(self) -> Path:
        return self._paths.get("pids") or next(iter(self._paths.values()))

    def _number(self, controller: str, name: str) -> int | None:
        path = self._paths.get(controller)
        text = _read(path / name).strip() if path is not None else ""
        return int(text) if text.isdecimal() else None

    def _entry(self, controller: str, name: str, key: str) -> int:
        path = self._paths.get(controller)
        for line in _read(path / name).splitlines() if path is not None else ():
            found, _, value = line.partition(" ")
            if found == key and value.strip().isdecimal():
                return int(value)
        return 0

    def _try_write(self, controller: str, name: str, text: str) -> None:
        path = self._paths.get(controller)
        if path is not None:
            with suppress(OSError):
                (path / name).write_text(text)


def groups_of(pid: int) -> ContainerGroups | None:
    """The groups that a process is in; None if they cannot be seen from here.

    Raises ProcessLookupError if there is no such process.
    """
    try:
        memberships = Path(f"/proc/{pid}/cgroup").read_text()
    except FileNotFoundError as error:
        raise ProcessLookupError(f"there is no process {pid}") from error
    mounts = _mounts(Path("/proc/self/mountinfo").read_text())
    if _is_in_no_group(memberships):
        raise ProcessLookupError(f"process {pid} has ended, or is in no group of its own")
    first = _paths(memberships, mounts, version=1)
    if "pids" in first and "memory" in first:
        return ContainerGroups(first, 1)
    second = _paths(memberships, mounts, version=2)
    return ContainerGroups(second, 2) if second else None


def _is_in_no_group(memberships: str) -> bool:
    """Whether a process is where the system puts those that end: among all others."""
    groups = {line.split(":", 2)[2] for line in memberships.splitlines()}
    return groups == {"/"} or groups == {
        line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()
    }


def _paths(memberships: str, mounts: list[Mount], *, version: int) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for line in memberships.splitlines():
        _, names, group = line.split(":", 2)
        # In version 2 there is one group for all.
        wanted = ("memory", "pids", "cpu", "cpuacct") if version == 2 else names.split(",")
        if (not names) != (version == 2):
            continue
        for name in wanted:
            path = _path(mounts, "" if version == 2 else name, group)
            if path is not None:
                paths[name] = path
    return {name: path for name, path in paths.items() if (path / "cgroup.procs").is_file()}


def _path(mounts: list[Mount], controller: str, group: str) -> Path | None:
    for mount in mounts:
        if (controller in mount.controllers) if controller else not mount.controllers:
            inside = os.path.relpath(group, mount.root)
            if not inside.startswith(".."):
                return Path(mount.point, inside)
    return None


def _mounts(mountinfo: str) -> list[Mount]:
    mounts = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        fields = left.split(" ")
        if kind == "cgroup2":
            mounts.append(Mount(frozenset(), fields[3], fields[4]))
        elif kind == "cgroup":
            mounts.append(Mount(frozenset(options.split(",")), fields[3], fields[4]))
    return mounts


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
