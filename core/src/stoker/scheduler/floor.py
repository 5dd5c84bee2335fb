"""The slots of executors, and what those who run a server are told of them and of what waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import trio

if TYPE_CHECKING:
    from stoker.scheduler.operations import Operations
    from stoker.scheduler.task import Assignment


class WaitingLine(NamedTuple):
    """What waits for the same executors."""

    tasks: int
    seconds: float
    """How long the first of it has waited."""


class ExecutorState(NamedTuple):
    """How an executor stands."""

    name: str
    away: str | None
    """Why it takes nothing new; None where it does."""
    free_slots: int
    """How many slots wait for an action."""
    busy_slots: int
    """How many have one, or clean up after one."""
    lost: int
    """How often an action was lost here."""


class Seat:
    """A slot that waits for a task. At most one task comes, once."""

    __slots__ = ("_taken", "assignment")

    def __init__(self) -> None:
        self.assignment: Assignment | None = None
        self._taken: trio.Event | None = None

    def put(self, assignment: Assignment) -> None:
        self.assignment = assignment
        if self._taken is not None:
            self._taken.set()

    async def wait(self) -> Assignment:
        """Wait for the task, which stays here if that is cancelled."""
        # At once where it can be: a turn of the loop would begin what is urgent behind others.
        if self.assignment is None:
            self._taken = trio.Event()
            await self._taken.wait()
            assert self.assignment is not None
        return self.assignment


class Slots:
    """The slots of one executor."""

    __slots__ = ("busy", "idle", "lost")

    def __init__(self) -> None:
        self.idle: deque[Seat] = deque()
        """Those that wait for a task, in the order in which they came."""
        self.busy = 0
        """How many have one, or clean up after one."""
        self.lost = 0
        """How often a task was lost here."""


class Floor:
    """The slots of all executors. What the queue hands out, it puts before them."""

    def __init__(self, executors: Iterable[str], operations: Operations) -> None:
        self._slots = {name: Slots() for name in executors}
        self._operations = operations

    def __getitem__(self, executor: str) -> Slots:
        return self._slots[executor]

    def hand_over(self, assignments: Iterable[Assignment]) -> None:
        """Each goes to the slot of its executor that has waited longest."""
        for assignment in assignments:
            self._operations.handed_over(assignment.task)
            slots = self._slots[assignment.executor]
            slots.busy += 1
            slots.idle.popleft().put(assignment)

    def states(self, away: Mapping[str, str]) -> list[ExecutorState]:
        """How each executor stands; `away` says why some take nothing new."""
        return [
            ExecutorState(name, away.get(name), len(slots.idle), slots.busy, slots.lost)
            for name, slots in self._slots.items()
        ]
