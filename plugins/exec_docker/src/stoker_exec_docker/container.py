"""One container that runs: what it is asked for by the process that has it."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from stoker import spi
from stoker_exec_docker.cgroups import ContainerGroups, Measures, groups_of
from stoker_exec_docker.inside import Inside
from stoker_exec_docker.mounting import Slot
from stoker_exec_docker.plan import KEEPER_PROCESSES, ContainerPlan
from stoker_exec_docker.wiping import is_without_ipc, open_to_all, wipe

_KILL_BOUND_SECONDS: Final = 5.0
_KEEPER_BOUND_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 0.002
_STEADY_SECONDS: Final = 0.05


class Container:
    """A running container. One process has it at a time. All methods block for moments."""

    def __init__(
        self, identity: str, name: str, plan: ContainerPlan, slot: Slot | None, pid: int
    ) -> None:
        """Wait for its first processes. Raises Unavailable where they cannot be seen."""
        self.identity = identity
        self.name = name
        self.plan = plan
        self.slot = slot
        self.usable = True
        """Whether another process may have it. Whoever doubts that says no."""
        self.served = 0
        """How many processes have had it."""
        self._pid = pid
        try:
            self.inside = Inside(pid)
        except OSError as error:
            raise _ended_at_once(name) from error
        try:
            self._groups = _groups(pid, name)
            self._spared = self._wait_for_keeper()
            self._before = self._groups.measure()
            # Whatever the image has there: engines take the permissions over from it.
            open_to_all(self.inside, plan.temporary_folders)
        except ProcessLookupError as error:
            self.close()
            raise _ended_at_once(name) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give back what is held of it out here; it may still run."""
        self.inside.close()

    def _wait_for_keeper(self) -> frozenset[int]:
        deadline = time.monotonic() + _KEEPER_BOUND_SECONDS
        while not _waits(members := self._groups.members(), self._groups):
            if time.monotonic() > deadline or not Path(f"/proc/{self._pid}").exists():
                raise spi.Unavailable(f"{self.name} has ended, or does not begin: {members}")
            time.sleep(_PAUSE_SECONDS)
        return frozenset(members)

    def admit(self, spec: spi.ProcessSpec) -> None:
        """Begin to serve a process. Raises OSError, ProcessLookupError if it has ended."""
        self.inside.check()
        self.served += 1
        if self.slot is not None and self.plan.base is not None:
            for folder in (spec.root, spec.temporary_directory):
                self.slot.show(folder, os.path.relpath(folder, self.plan.base))
        self._groups.forget_peak()
        self._before = self._groups.measure()

    def is_member(self, pid: int) -> bool:
        """Whether a process is one of this container's."""
        return pid in self._groups.members()

    def terminate(self) -> None:
        """Ask all that the process started to end."""
        self._groups.signal_all_but(self._spared, signal.SIGTERM)

    def kill(self) -> None:
        """Kill all that the process started. Raises Unavailable if something withstands."""
        if not self._others():
            return
        deadline = time.monotonic() + _KILL_BOUND_SECONDS
        self._groups.hold_still()
        try:
            while self._groups.signal_all_but(self._spared, signal.SIGKILL):
                if time.monotonic() > deadline:
                    raise spi.Unavailable(f"a process in {self.name} cannot be killed")
                time.sleep(_PAUSE_SECONDS)
        finally:
            self._groups.release(self.plan.process_limit)

    def _others(self) -> list[int]:
        return [pid for pid in self._groups.members() if pid not in self._spared]

    def settle(self) -> None:
        """Let nothing of the process be left. In doubt after it raised Unavailable or OSError."""
        self.kill()
        if self.slot is not None:
            self.slot.hide_all()
        if self.plan.keep and self.usable:
            self.usable = self._is_as_new()

    def _is_as_new(self) -> bool:
        if frozenset(self._groups.members()) != self._spared:
            return False
        folders = [*self.plan.temporary_folders, "/dev/shm", "/dev/mqueue"]  # noqa: S108
        return wipe(self.inside, folders) and is_without_ipc(self.inside)

    def breach(self, code: int, *, out_of_memory: bool) -> str:
        """The limit that a process ended by, if it failed, as a sentence, else empty.

        `out_of_memory` is what the engine says of the container as a whole.
        """
        if not code:
            return ""
        now, limits = self._groups.measure(), self.plan.limits
        if now.oom_kills > self._before.oom_kills or out_of_memory:
            peak = self._groups.peak_memory_bytes() or 0
            if limits.memory_bytes is None:
                return f"out of memory: the machine has no more, the peak was {peak} bytes"
            return f"out of memory: the limit is {limits.memory_bytes} bytes, the peak was {peak}"
        if now.process_refusals > self._before.process_refusals:
            return f"out of processes: the limit is {limits.processes} processes and threads"
        return ""

    def usage(self) -> spi.ResourceUsage | None:
        """What the process has used so far."""
        return _difference(self._before, self._groups.measure(), self._groups.peak_memory_bytes())

    def memory_bytes(self) -> int | None:
        """What is in use now."""
        return self._groups.memory_bytes()

    def forget_folders(self) -> None:
        """Take its slot away. No error if that does not work: a later sweep does it."""
        if self.slot is not None:
            with suppress(OSError):
                self.slot.remove()


def _waits(members: list[int], groups: ContainerGroups) -> bool:
    """Whether these are a shell and what it waits for, rather than one that is about to fail."""
    if len(members) != KEEPER_PROCESSES:
        return False
    if any(_program(pid).endswith(b"sleep") for pid in members):
        return True
    # Some shells do it themselves.
    time.sleep(_STEADY_SECONDS)
    return groups.members() == members


def _program(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    except OSError:
        return b""


def _ended_at_once(name: str) -> spi.Unavailable:
    return spi.Unavailable(f"{name} has ended at once, or runs on another machine")


def _groups(pid: int, name: str) -> ContainerGroups:
    try:
        groups = groups_of(pid)
    except ProcessLookupError as error:
        raise _ended_at_once(name) from error
    if groups is None:
        raise spi.Unavailable(f"the control groups of {name} cannot be seen from here")
    return groups


def _difference(before: Measures, now: Measures, peak: int | None) -> spi.ResourceUsage | None:
    if (
        now.user_seconds is None
        or now.system_seconds is None
        or before.user_seconds is None
        or before.system_seconds is None
    ):
        return None
    return spi.ResourceUsage(
        max(now.user_seconds - before.user_seconds, 0.0),
        max(now.system_seconds - before.system_seconds, 0.0),
        peak or 0,
    )
