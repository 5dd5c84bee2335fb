"""Executors that are away, and what waits for them alone (EXE-14)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from time import time_ns
from typing import TYPE_CHECKING

import trio

from stoker.errors import FailedPrecondition
from stoker.protos.scheduling_pb2 import WaitingForExecutor

if TYPE_CHECKING:
    from stoker.alarm import Alarm
    from stoker.scheduler.floor import Floor
    from stoker.scheduler.operations import Operations
    from stoker.scheduler.queue import Queue
    from stoker.scheduler.task import Task


_FOR_GOOD_SECONDS = 100 * 365 * 86400
"""Who may wait for longer is told of no end, for which a Timestamp may have no figure."""


class Absence:
    """Sends executors away and takes them back, and tells clients what that means for them."""

    def __init__(
        self,
        queue: Queue,
        operations: Operations,
        floor: Floor,
        alarm: Alarm,
        wait_seconds: float,
    ) -> None:
        """`alarm` rings when `overdue` is to be asked; actions wait for `wait_seconds`."""
        self._queue = queue
        self._operations = operations
        self._floor = floor
        self._alarm = alarm
        self._wait_seconds = wait_seconds
        self.reasons: dict[str, str] = {}
        """Why each executor that is away is so, as words that follow its name."""

    def detach(self, executor: str, reason: str) -> None:
        """`executor` takes nothing new, for this reason. No error if it is away already."""
        self.reasons[executor] = reason
        self._floor.hand_over(self._queue.detach(executor, now=trio.current_time()))
        for task in self._queue.stranded:
            if executor in task.kind.eligible:
                self.tell(task)

    def attach(self, executor: str) -> None:
        """`executor` takes actions again. No error if it does anyway."""
        self.reasons.pop(executor, None)
        stranded = [*self._queue.stranded]
        assignments = self._queue.attach(executor, now=trio.current_time())
        for task in stranded:
            if task not in self._queue.stranded:
                self._operations.explain_wait(task, None)
        self._floor.hand_over(assignments)

    def tell(self, task: Task) -> None:
        """Tell whoever waits for `task`, which is stranded, what it waits for, and how long."""
        waited = trio.current_time() - self._queue.stranded[task]
        since_ns = time_ns() - round(waited * 1e9)
        seconds = self._wait_seconds
        note = _waiting_note(task.kind.eligible, self.reasons, since_ns=since_ns, seconds=seconds)
        self._operations.explain_wait(task, note)
        self.set_alarm()

    def overdue(self, now: float) -> list[tuple[Task, FailedPrecondition]]:
        """What has waited for as long as it may, and the error with which it ends."""
        found = []
        for task, since in self._queue.stranded.items():
            if since + self._wait_seconds > now:
                break
            error = _none_came(task.kind.eligible, self.reasons, self._wait_seconds)
            found.append((task, error))
        return found

    def set_alarm(self) -> None:
        """Have it ring when the first is overdue."""
        # They are in the order in which their wait began.
        first = next(iter(self._queue.stranded.values()), None)
        if first is not None:
            self._alarm.set(first + self._wait_seconds)


def _waiting_note(
    executors: Collection[str], reasons: Mapping[str, str], *, since_ns: int, seconds: float
) -> WaitingForExecutor:
    """What an action waits for, for so long at most, that could run on `executors`; `reasons` say
    why each is away."""
    note = WaitingForExecutor(
        reason=f"no executor that could run it is there: {_sentence(executors, reasons)}",
        executors=sorted(executors),
    )
    note.since.FromNanoseconds(since_ns)
    if seconds < _FOR_GOOD_SECONDS:
        note.until.FromNanoseconds(since_ns + round(seconds * 1e9))
    return note


def _none_came(
    executors: Collection[str], reasons: Mapping[str, str], seconds: float
) -> FailedPrecondition:
    """The end of the wait."""
    return FailedPrecondition(
        f"the action waited {seconds:g} s, as long as it may, for an executor that could run it: "
        f"{_sentence(executors, reasons)}"
    )


def _sentence(executors: Collection[str], reasons: Mapping[str, str]) -> str:
    return "; ".join(
        f"executor {name!r} {reasons.get(name, 'is away')}" for name in sorted(executors)
    )
