"""The control groups of one process: what it may use, what it used, and its end."""

from __future__ import annotations

import os

from stoker_exec_local.launcher import cgroups

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stoker_exec_local.launcher.messages import Start

_PERIOD_MICROSECONDS = 100_000
_SHORTEST_QUOTA_MICROSECONDS = 1_000
# Memory is charged in batches: the peak may stay this much below a limit that was reached.
_CHARGE_BATCH_BYTES = 1024 * 1024


class Hierarchy:
    """A folder of ours in one tree of control groups."""

    __slots__ = ("controllers", "ends_processes", "path", "version")

    def __init__(
        self, version: int, path: str, controllers: tuple[str, ...], ends_processes: bool
    ) -> None:
        self.version = version
        self.path = path
        self.controllers = controllers
        """Those among cpu, memory and pids that work in groups below `path`."""
        self.ends_processes = ends_processes
        """Whether processes are found, and killed, by this one. One of all does."""

    def fields(self) -> tuple[object, ...]:
        """For a message; `Hierarchy(*fields)` is the same again."""
        return self.version, self.path, self.controllers, self.ends_processes


class Estate:
    """Where groups are made, one below the other for each process."""

    def __init__(self, hierarchies: list[Hierarchy], max_memory_bytes: int | None) -> None:
        self.hierarchies = hierarchies
        self.max_memory_bytes = max_memory_bytes
        """What all processes together may use, if that is bounded."""

    def remove(self) -> bool:
        """Remove the folders themselves, which must be empty. Returns whether they are gone."""
        left = [place for place in self.hierarchies if not cgroups.remove(place.path)]
        return not left


class Group:
    """The groups of the process of a number."""

    def __init__(self, estate: Estate, number: int, start: Start) -> None:
        self._start = start
        self._max_memory_bytes = estate.max_memory_bytes
        self._paths = [
            (hierarchy, f"{hierarchy.path}/{number}")
            for hierarchy in estate.hierarchies
            if hierarchy.ends_processes or _is_needed(hierarchy, start)
        ]
        self._left = [path for _, path in self._paths]

    def create_and_join(self) -> None:
        """Called by the process itself before it becomes the command. Raises OSError."""
        for hierarchy, path in self._paths:
            os.mkdir(path, 0o755)  # noqa: PTH102  # no pathlib here
            _limit(hierarchy, path, self._start)
        for _, path in self._paths:
            cgroups.write(path, "cgroup.procs", "0")

    def enforces(self, controller: str) -> bool:
        """Whether a limit of this kind is kept by a group."""
        return self._path(controller) is not None

    def send(self, number: int) -> None:
        """Send a signal to every process."""
        cgroups.send(self._path_of_end(), number)

    def kill(self) -> None:
        """Kill what is there; to be repeated until `remove` tells of the end."""
        cgroups.kill(self._path_of_end())

    def remove(self) -> bool:
        """Whether no process is left, and no group."""
        self._left = [path for path in self._left if not cgroups.remove(path)]
        return not self._left

    def cpu_seconds(self) -> tuple[float, float] | None:
        """User and system time, where a group counted it."""
        path = self._path_of_end()
        text = cgroups.read(path, "cpu.stat").split()
        entries = dict(zip(text[::2], text[1::2], strict=False))
        if "user_usec" not in entries:
            return None
        return int(entries["user_usec"]) / 1e6, int(entries["system_usec"]) / 1e6

    def peak_memory_bytes(self) -> int | None:
        """The most memory that was in use, where a group counted it."""
        place = self._path("memory")
        if place is None:
            return None
        version, path = place
        return cgroups.read_number(
            path, "memory.peak" if version == 2 else "memory.max_usage_in_bytes"
        )

    def breach(self, peak_memory_bytes: int) -> str:
        """Which limit a process that failed has run into, as a sentence, else empty."""
        return self._memory_breach(peak_memory_bytes) or self._processes_breach()

    def _memory_breach(self, peak: int) -> str:
        place = self._path("memory")
        if place is None or not _oom_kills(*place):
            return ""
        own, all_together = self._start.memory_bytes, self._max_memory_bytes
        if own is not None and (
            all_together is None or own <= all_together or peak + _CHARGE_BATCH_BYTES >= own
        ):
            return f"out of memory: the limit is {own} bytes, the peak was {peak}"
        if all_together is not None:
            return (
                f"out of memory: the limit of all actions together is {all_together} bytes, "
                f"the peak of this one was {peak}"
            )
        return f"out of memory: the machine has no more, the peak was {peak} bytes"

    def _processes_breach(self) -> str:
        place = self._path("pids")
        if place is None or not cgroups.read_entry(place[1], "pids.events", "max"):
            return ""
        return f"out of processes: the limit is {self._start.processes} processes and threads"

    def _path(self, controller: str) -> tuple[int, str] | None:
        for hierarchy, path in self._paths:
            if controller in hierarchy.controllers:
                return hierarchy.version, path
        return None

    def _path_of_end(self) -> str:
        return next(path for hierarchy, path in self._paths if hierarchy.ends_processes)


def _is_needed(hierarchy: Hierarchy, start: Start) -> bool:
    return (
        "memory" in hierarchy.controllers
        or ("pids" in hierarchy.controllers and start.processes is not None)
        or ("cpu" in hierarchy.controllers and start.cpus is not None)
    )


def _limit(hierarchy: Hierarchy, path: str, start: Start) -> None:
    if start.memory_bytes is not None and "memory" in hierarchy.controllers:
        limit_memory(hierarchy.version, path, start.memory_bytes)
    if start.processes is not None and "pids" in hierarchy.controllers:
        cgroups.write(path, "pids.max", str(start.processes))
    if start.cpus is not None and "cpu" in hierarchy.controllers:
        _limit_cpus(hierarchy.version, path, start.cpus)


def limit_memory(version: int, path: str, memory_bytes: int) -> None:
    """Bound the memory of a group, with no room in swap beside it. Raises OSError."""
    if version == 2:
        cgroups.write(path, "memory.max", str(memory_bytes))
        cgroups.try_write(path, "memory.swap.max", "0")
        return
    cgroups.write(path, "memory.limit_in_bytes", str(memory_bytes))
    cgroups.try_write(path, "memory.memsw.limit_in_bytes", str(memory_bytes))


def _limit_cpus(version: int, path: str, cpus: float) -> None:
    quota = max(int(cpus * _PERIOD_MICROSECONDS), _SHORTEST_QUOTA_MICROSECONDS)
    if version == 2:
        cgroups.write(path, "cpu.max", f"{quota} {_PERIOD_MICROSECONDS}")
        return
    cgroups.write(path, "cpu.cfs_period_us", str(_PERIOD_MICROSECONDS))
    cgroups.write(path, "cpu.cfs_quota_us", str(quota))


def _oom_kills(version: int, path: str) -> int:
    return cgroups.read_entry(
        path, "memory.events" if version == 2 else "memory.oom_control", "oom_kill"
    )
