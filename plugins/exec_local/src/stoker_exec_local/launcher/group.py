"""The control groups of one process: what it may use, what it used, and its end."""

from __future__ import annotations

import os

from stoker_exec_local.launcher import cgroups, messages
from stoker_exec_local.launcher.kept import Kept, can_keep

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stoker_exec_local.launcher.messages import Start

_MOST_IDLE = 16
_ROOM_FOR_VISITORS = 64
_PERIOD_MICROSECONDS = 100_000
_SHORTEST_QUOTA_MICROSECONDS = 1_000
# Memory is charged in batches: the peak may stay this much below a limit that was reached.
_CHARGE_BATCH_BYTES = 1024 * 1024


class Hierarchy:
    """A folder of ours in one tree of control groups."""

    __slots__ = ("_home_members", "controllers", "ends_processes", "home", "path", "version")

    def __init__(
        self,
        version: int,
        path: str,
        controllers: tuple[str, ...],
        ends_processes: bool,
        home: str,
    ) -> None:
        self.version = version
        self.path = path
        self.controllers = controllers
        """Those among cpu, memory and pids that work in groups below `path`."""
        self.ends_processes = ends_processes
        """Whether processes are found, and killed, by this one. One of all does."""
        self.home = home
        """The group of the server and its launcher, empty where that is not known."""
        self._home_members = -1

    @property
    def own_thread_file(self) -> str:
        """Where a process of one thread writes itself into a group.

        To move a whole process the kernel stops all forks of the machine, and may wait
        milliseconds for that; version 1 lets a process avoid it that moves its own thread.
        """
        return "cgroup.procs" if self.version == 2 else "tasks"

    def try_home(self) -> bool:
        """Whether the launcher, having left its group, may come back to it."""
        try:
            self._home_members = os.open(
                f"{self.home}/{self.own_thread_file}", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            )
            self.go_home()
        except OSError:
            return False
        return True

    def go_home(self) -> None:
        """Take the launcher back to its group, after `try_home`. Raises OSError."""
        os.write(self._home_members, b"0")

    def fields(self) -> tuple[object, ...]:
        """For a message; `Hierarchy(*fields)` is the same again."""
        return self.version, self.path, self.controllers, self.ends_processes, self.home


class Estate:
    """Where groups are made, one below the other for each process."""

    def __init__(self, hierarchies: list[Hierarchy], max_memory_bytes: int | None) -> None:
        self.hierarchies = hierarchies
        self.max_memory_bytes = max_memory_bytes
        """What all processes together may use, if that is bounded."""
        self.can_be_visited = False
        """Whether the launcher can go into groups and come back; see `try_homes`."""
        self.idle: list[tuple[int | None, Kept]] = []
        """Groups of no process, as good as new, each with its limit on processes."""

    def try_homes(self) -> None:
        """Find out whether the launcher may leave its groups: it may where it can come back."""
        self.can_be_visited = all(hierarchy.try_home() for hierarchy in self.hierarchies)

    def take_idle(self, processes: int | None) -> Kept | None:
        """A group of no process that has this limit on processes, if there is one."""
        for number, (limit, kept) in enumerate(self.idle):
            if limit == processes:
                del self.idle[number]
                return kept
        return None

    def remove(self) -> bool:
        """Remove the folders themselves, which must be empty. Returns whether they are gone."""
        left = [place for place in self.hierarchies if not cgroups.remove(place.path)]
        return not left


class Group:
    """The groups of the process of a number."""

    def __init__(self, estate: Estate, number: int, start: Start) -> None:
        self._start = start
        self._estate = estate
        self._can_be_kept = estate.can_be_visited and _may_be_kept(start)
        self._kept = estate.take_idle(start.processes) if self._can_be_kept else None
        self._paths = self._kept.paths if self._kept else _paths(estate, number, start)
        self._left = [path for _, path in self._paths]

    @property
    def can_be_visited(self) -> bool:
        """Whether the launcher can join and leave, so that what it starts is born here."""
        return self._estate.can_be_visited

    def create(self, *, visited: bool) -> None:
        """Make the groups, with their limits. Raises OSError.

        With `visited` there is room for the launcher beside the process, until `settle`.
        """
        if self._kept is not None:
            return
        for hierarchy, path in self._paths:
            os.mkdir(path, 0o755)  # noqa: PTH102  # no pathlib here
            _limit(hierarchy, path, self._start, visitors=int(visited))
            if not visited:
                _limit_cpus(hierarchy, path, self._start)

    def join(self) -> None:
        """Take this process into the groups. Raises OSError."""
        if self._kept is not None:
            self._kept.join()
            return
        for hierarchy, path in self._paths:
            cgroups.write(path, hierarchy.own_thread_file, "0")

    def leave(self) -> None:
        """Take the launcher home. Raises OSError."""
        for hierarchy, _ in self._paths:
            hierarchy.go_home()

    def settle(self) -> None:
        """Set what would have hindered the launcher, now that it has left. Raises OSError."""
        if self._kept is not None:
            return
        for hierarchy, path in self._paths:
            _limit_processes(hierarchy, path, self._start, visitors=0)
            # With little time for the group, the launcher would have stood still as well.
            _limit_cpus(hierarchy, path, self._start)

    def enforces(self, controller: str) -> bool:
        """Whether a limit of this kind is kept by a group."""
        return self._path(controller) is not None

    def send(self, number: int) -> None:
        """Send a signal to every process."""
        cgroups.send(self._path_of_end(), number)

    def kill(self) -> None:
        """Kill what is there; to be repeated until `remove` tells of the end."""
        cgroups.kill(self._path_of_end())

    def give_back(self) -> bool:
        """Whether no process is left, after one that ended well: the groups may serve another."""
        try:
            is_kept = self._can_be_kept and self._keep()
        except (OSError, ValueError):
            is_kept = False
        return is_kept or self.remove()

    def _keep(self) -> bool:
        idle = self._estate.idle
        if len(idle) >= _MOST_IDLE or not can_keep(self._estate.hierarchies):
            return False
        if self._kept is None:
            self._kept = Kept(self._paths)
            self._kept.cpu_seconds()
        if not self._kept.reset():
            return False
        idle.append((self._start.processes, self._kept))
        return True

    def remove(self) -> bool:
        """Whether no process is left, and no group."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None
        self._left = [path for path in self._left if not cgroups.remove(path)]
        return not self._left

    def cpu_seconds(self) -> tuple[float, float] | None:
        """User and system time, where a group counted it. To be asked for once."""
        if self._kept is not None:
            return self._kept.cpu_seconds()
        path = self._path_of_end()
        text = cgroups.read(path, "cpu.stat").split()
        entries = dict(zip(text[::2], text[1::2], strict=False))
        if "user_usec" not in entries:
            return None
        return int(entries["user_usec"]) / 1e6, int(entries["system_usec"]) / 1e6

    def peak_memory_bytes(self) -> int | None:
        """The most memory that was in use, where a group counted it."""
        if self._kept is not None:
            return self._kept.peak_memory_bytes()
        place = self._path("memory")
        if place is None:
            return None
        version, path = place
        return cgroups.read_number(
            path, "memory.peak" if version == 2 else "memory.max_usage_in_bytes"
        )

    def memory_source(self) -> tuple[object, ...]:
        """Where the memory that is in use can be read, as `messages.STARTED` tells it."""
        place = self._path("memory")
        if place is None:
            return messages.GROUP_MEMBERS, self._path_of_end()
        return (messages.GROUP_MEMORY, *place)

    def breach(self, peak_memory_bytes: int) -> str:
        """Which limit a process that failed has run into, as a sentence, else empty."""
        return self._memory_breach(peak_memory_bytes) or self._processes_breach()

    def _memory_breach(self, peak: int) -> str:
        place = self._path("memory")
        if place is None or not _oom_kills(*place):
            return ""
        own, all_together = self._start.memory_bytes, self._estate.max_memory_bytes
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


def _paths(estate: Estate, number: int, start: Start) -> list[tuple[Hierarchy, str]]:
    return [
        (hierarchy, f"{hierarchy.path}/{number}")
        for hierarchy in estate.hierarchies
        if hierarchy.ends_processes or _is_needed(hierarchy, start)
    ]


def _may_be_kept(start: Start) -> bool:
    if start.cpus is not None or start.memory_bytes is not None:
        return False
    # The launcher is a process too, while it is there to start the next one.
    return start.processes is None or start.processes >= _ROOM_FOR_VISITORS


def _is_needed(hierarchy: Hierarchy, start: Start) -> bool:
    return (
        "memory" in hierarchy.controllers
        or ("pids" in hierarchy.controllers and start.processes is not None)
        or ("cpu" in hierarchy.controllers and start.cpus is not None)
    )


def _limit(hierarchy: Hierarchy, path: str, start: Start, *, visitors: int) -> None:
    if start.memory_bytes is not None and "memory" in hierarchy.controllers:
        limit_memory(hierarchy.version, path, start.memory_bytes)
    _limit_processes(hierarchy, path, start, visitors=visitors)


def _limit_processes(hierarchy: Hierarchy, path: str, start: Start, *, visitors: int) -> None:
    if start.processes is not None and "pids" in hierarchy.controllers:
        cgroups.write(path, "pids.max", str(start.processes + visitors))


def limit_memory(version: int, path: str, memory_bytes: int) -> None:
    """Bound the memory of a group, with no room in swap beside it. Raises OSError."""
    if version == 2:
        cgroups.write(path, "memory.max", str(memory_bytes))
        cgroups.try_write(path, "memory.swap.max", "0")
        return
    cgroups.write(path, "memory.limit_in_bytes", str(memory_bytes))
    cgroups.try_write(path, "memory.memsw.limit_in_bytes", str(memory_bytes))


def _limit_cpus(hierarchy: Hierarchy, path: str, start: Start) -> None:
    if start.cpus is None or "cpu" not in hierarchy.controllers:
        return
    quota = max(int(start.cpus * _PERIOD_MICROSECONDS), _SHORTEST_QUOTA_MICROSECONDS)
    if hierarchy.version == 2:
        cgroups.write(path, "cpu.max", f"{quota} {_PERIOD_MICROSECONDS}")
        return
    cgroups.write(path, "cpu.cfs_period_us", str(_PERIOD_MICROSECONDS))
    cgroups.write(path, "cpu.cfs_quota_us", str(quota))


def _oom_kills(version: int, path: str) -> int:
    return cgroups.read_entry(
        path, "memory.events" if version == 2 else "memory.oom_control", "oom_kill"
    )
