"""A process and all that came of it, as far as the process table tells.

A process belongs to the tree when it is in the leader's session, is a descendant of such a one,
or is in the session that such a descendant opened. It is looked at when its end begins: when it
is asked to terminate, when its stdin is closed, and when it is killed. A process that called
setsid *and* whose parent ended before anybody looked is not found.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import trio

_FIRST_PAUSE_SECONDS = 0.0005
_LONGEST_PAUSE_SECONDS = 0.05
_NUM_THREADS = 16
"""Where /proc/PID/stat has the number of threads, counted from the field after the state."""


class ProcessTree:
    """The tree of `leader`, which leads its session and must stay unreaped during all calls.

    An unreaped leader keeps its number, and so that of its group and session, from being given
    to a stranger.
    """

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self._sessions = {leader}

    def note(self) -> None:
        """Remember the sessions that are there now, as their parents may be about to end."""
        self._living_members()

    def send(self, number: signal.Signals) -> bool:
        """Send a signal to every living member. Returns whether there was one."""
        living = self._living_members()
        if living:
            # The group first and as one: a member cannot fork its way out of it.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._leader, number)
        for pid in living:
            if not _is_in_group(pid, self._leader):
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
        return bool(living)

    async def kill(self) -> None:
        """Send SIGKILL again and again until no member lives. Unbounded: the caller sets bounds."""
        pause_seconds = _FIRST_PAUSE_SECONDS
        while self.send(signal.SIGKILL):
            await trio.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 2, _LONGEST_PAUSE_SECONDS)

    def _living_members(self) -> set[int]:
        members = {pid for pid in _all_processes() if _session(pid) in self._sessions}
        unvisited = list(members)
        while unvisited:
            children = _children(unvisited.pop()) - members
            members |= children
            unvisited += children
            self._sessions |= {session for pid in children if (session := _session(pid))}
        return self._without_dead(members)

    def _without_dead(self, members: Iterable[int]) -> set[int]:
        dead = {pid for pid in members if not _is_alive(pid)}
        for pid in dead - {self._leader}:
            # Orphans fall to this process when it is the init of a container, or a subreaper.
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
        return set(members) - dead


def _all_processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())  # noqa: PTH208  # hot


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def _is_in_group(pid: int, group: int) -> bool:
    try:
        return os.getpgid(pid) == group
    except (ProcessLookupError, PermissionError):
        return False


def _children(pid: int) -> set[int]:
    numbers: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            numbers.update(map(int, path.read_bytes().split()))
    return numbers


def _is_alive(pid: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    # The second field is a file name in parentheses, which may hold anything.
    state, *numbers = fields.rpartition(b") ")[2].split()
    # A process lives on in its threads after the first of them has ended.
    return state not in (b"Z", b"X") or int(numbers[_NUM_THREADS]) > 1
