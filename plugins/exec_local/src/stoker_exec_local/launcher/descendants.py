"""Processes as the process table tells of them: who came of whom, and whose they are."""

# ruff: noqa: PTH116, PTH208

from __future__ import annotations

import os
import signal

# Where /proc/PID/stat has its fields, counted from the state, which is the first after the name.
_PARENT = 1
_NUM_THREADS = 17
_START_TIME = 19


def stat_fields(pid: int) -> list[bytes]:
    """What /proc/PID/stat says, from the state on. Raises OSError if there is no such process."""
    descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # The second field is a file name in parentheses, which may hold anything.
        return os.read(descriptor, 4096).rpartition(b") ")[2].split()
    finally:
        os.close(descriptor)


def start_time(pid: int) -> int | None:
    """When the process began, in ticks since the machine did; None if there is none."""
    try:
        return int(stat_fields(pid)[_START_TIME])
    except OSError:
        return None


def descendants(ancestor: int, *, except_of: frozenset[int] = frozenset()) -> list[int]:
    """All that came of `ancestor` and is still there, but for children `except_of` and theirs."""
    children = _children if _LISTS_CHILDREN else _families().get
    found: list[int] = []
    unvisited = [pid for pid in children(ancestor) or () if pid not in except_of]
    while unvisited:
        pid = unvisited.pop()
        found.append(pid)
        unvisited += children(pid) or ()
    return found


def send_to(pids: list[int], number: int) -> None:
    """Send a signal to each; no error for those that are gone."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def kill_descendants(ancestor: int, *, except_of: frozenset[int] = frozenset()) -> bool:
    """Kill once what came of `ancestor`. Returns whether there was anything."""
    found = descendants(ancestor, except_of=except_of)
    send_to(found, signal.SIGKILL)
    return bool(found)


def count_tasks_of_user(uid: int) -> int:
    """How many processes and threads a user has now."""
    count = 0
    for pid in _all_processes():
        try:
            if os.stat(f"/proc/{pid}").st_uid == uid:
                count += int(stat_fields(pid)[_NUM_THREADS])
        except OSError:
            continue
    return count


def _children(pid: int) -> list[int]:
    numbers: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return numbers
    for thread in threads:
        try:
            descriptor = os.open(f"/proc/{pid}/task/{thread}/children", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            # A list that is longer than this is read on when its beginning has been killed.
            numbers += map(int, os.read(descriptor, 65536).rpartition(b" ")[0].split())
        except OSError:
            continue
        finally:
            os.close(descriptor)
    return numbers


# Most kernels can tell; asking all processes for their parents takes far longer.
_LISTS_CHILDREN = os.path.exists(f"/proc/self/task/{os.getpid()}/children")  # noqa: PTH110


def _families() -> dict[int, list[int]]:
    families: dict[int, list[int]] = {}
    for pid in _all_processes():
        try:
            parent = int(stat_fields(pid)[_PARENT])
        except OSError:
            continue
        families.setdefault(parent, []).append(pid)
    return families


def _all_processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]
