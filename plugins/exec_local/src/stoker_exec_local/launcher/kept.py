"""Control groups that serve one process after another.

To make a group, to open its files and to remove it takes longer than all else that the launcher
does for a small process. One without limits, but for one on processes that stays as it is, is used
again if it is as good as new: empty, with next to nothing charged to it, and never short of
anything.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stoker_exec_local.launcher.group import Hierarchy

# What may be charged to a group that is used again, and so be part of the next one's peak. The
# system counts no more exactly than that, as it charges in batches.
_MOST_BYTES_LEFT = 1024 * 1024
_LONGEST_FILE = 4096
_LINKS_OF_AN_EMPTY_FOLDER = 2


def can_keep(hierarchies: list[Hierarchy]) -> bool:
    """Whether groups there can be reset: version 2 begins no new peak before Linux 6.12."""
    return all(place.version == 1 or not place.controllers for place in hierarchies)


class Kept:
    """The files of a process's groups, held open. Raises OSError if some cannot be opened."""

    def __init__(self, paths: list[tuple[Hierarchy, str]]) -> None:
        self.paths = paths
        self.cpu_before = 0, 0
        """What was used by those that are gone, in microseconds."""
        self._all: list[int] = []
        self._own_thread: list[int] = []
        self._memory = self._usage = self._peak = self._processes = -1
        try:
            for place, path in paths:
                self._open_all(place, path)
        except BaseException:
            self.close()
            raise

    def _open_all(self, place: Hierarchy, path: str) -> None:
        self._own_thread.append(self._open(f"{path}/{place.own_thread_file}", os.O_WRONLY))
        if place.ends_processes:
            self._path_of_end = path
            self._members = self._open(f"{path}/cgroup.procs", os.O_RDONLY)
            self._open_cpu(path)
        if "pids" in place.controllers:
            self._processes = self._open(f"{path}/pids.events", os.O_RDONLY)
        if "memory" in place.controllers:
            self._memory = self._open(f"{path}/memory.oom_control", os.O_RDONLY)
            self._usage = self._open(f"{path}/memory.usage_in_bytes", os.O_RDONLY)
            self._peak = self._open(f"{path}/memory.max_usage_in_bytes", os.O_RDWR)

    def _open_cpu(self, path: str) -> None:
        try:
            self._cpu = self._open(f"{path}/cpu.stat", os.O_RDONLY)
        except FileNotFoundError:
            self._cpu = -1  # some groups of version 1 count none

    def _open(self, path: str, flags: int) -> int:
        descriptor = os.open(path, flags | os.O_CLOEXEC)
        self._all.append(descriptor)
        return descriptor

    def join(self) -> None:
        """Take the calling process into the groups. Raises OSError."""
        for descriptor in self._own_thread:
            os.write(descriptor, b"0")

    def cpu_seconds(self) -> tuple[float, float] | None:
        """What the process that is there now has used, where a group counts that."""
        words = os.pread(self._cpu, _LONGEST_FILE, 0).split() if self._cpu != -1 else []
        if b"user_usec" not in words:
            return None
        user, system = self.cpu_before
        self.cpu_before = (
            int(words[words.index(b"user_usec") + 1]),
            int(words[words.index(b"system_usec") + 1]),
        )
        return (self.cpu_before[0] - user) / 1e6, (self.cpu_before[1] - system) / 1e6

    def peak_memory_bytes(self) -> int | None:
        """The most memory that was in use since `reset`, where a group counts that."""
        return None if self._peak == -1 else int(os.pread(self._peak, _LONGEST_FILE, 0))

    def reset(self) -> bool:
        """Whether the groups are as new for another process. Raises OSError."""
        if os.pread(self._members, 1, 0) or self._was_short_of_processes():
            return False
        if os.stat(self._path_of_end).st_nlink != _LINKS_OF_AN_EMPTY_FOLDER:  # noqa: PTH116
            return False
        if self._peak == -1:
            return True
        if int(os.pread(self._usage, _LONGEST_FILE, 0)) > _MOST_BYTES_LEFT:
            return False
        if b"oom_kill 0" not in os.pread(self._memory, _LONGEST_FILE, 0):
            return False
        os.pwrite(self._peak, b"0", 0)
        return True

    def _was_short_of_processes(self) -> bool:
        if self._processes == -1:
            return False
        return b"max 0" not in os.pread(self._processes, _LONGEST_FILE, 0)

    def close(self) -> None:
        """Give the files back."""
        for descriptor in self._all:
            os.close(descriptor)
