"""How slots of executors get tasks, keep them, and lose them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from stoker.action import LoadedAction, Outcome
from stoker.protos import remote_execution_pb2 as reapi
from stoker.scheduler.floor import Seat
from stoker.scheduler.task import Assignment, Stage, Task

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from stoker.alarm import Alarm
    from stoker.log_streams.names import StreamNames
    from stoker.scheduler.absence import Absence
    from stoker.scheduler.completions import Completions
    from stoker.scheduler.entrance import Entrance
    from stoker.scheduler.floor import Floor
    from stoker.scheduler.journal import Journal
    from stoker.scheduler.operations import Operations
    from stoker.scheduler.queue import Queue
    from stoker.scheduler.shutdown import Shutdown


class Lease:
    """A task in the hands of an executor's slot, until it lets go of it.

    The slot may lose it before that: when its life is over, or the server is about to end. Then
    `scope` is cancelled, the task is run again, and what the slot still says of it is not heard
    (SCH-05). One that was never renewed has no life of its own: it lasts as long as its context.
    """

    def __init__(self, leases: Leases, assignment: Assignment, queued_timestamp: Timestamp) -> None:
        self._leases = leases
        self.assignment = assignment
        """What the queue knows it by."""
        self.queued_timestamp = queued_timestamp
        """When the first of the task's operations was accepted."""
        self.began_nanoseconds = time.time_ns()
        """When the slot was given it."""
        self.scope = trio.CancelScope()
        """Cancelled when no operation wants the task any more, or the lease is lost."""
        self.is_filing = False
        """Whether its result is on its way into the action cache, and may be seen there."""

    @property
    def action(self) -> LoadedAction:
        return self.assignment.task.action

    def started(
        self, metadata: reapi.ExecutedActionMetadata, streams: StreamNames | None = None
    ) -> None:
        """The action's process is about to start; what it prints can be read from `streams`."""
        self._leases.started(self.assignment, metadata, streams)

    def renew(self, seconds: float) -> bool:
        """It lives for so long from now on, and is lost then unless it is renewed again.

        Returns False if it has been lost, or its task has ended.
        """
        return self._leases.renew(self.assignment, seconds)

    def complete(self, outcome: Outcome) -> bool:
        """The task has ended; everybody who waits is told.

        Returns False, and changes nothing, if it has ended before or the lease has been lost.
        """
        return self._leases.complete(self.assignment, outcome)


class Leases:
    """The tasks that slots have.

    Whatever ends the hold of a slot on its task goes through here; of what is lost, it is decided
    whether it runs again.
    """

    def __init__(
        self,
        queue: Queue,
        operations: Operations,
        floor: Floor,
        *,
        absence: Absence,
        entrance: Entrance,
        completions: Completions,
        journal: Journal,
        alarm: Alarm,
        shutdown: Shutdown,
    ) -> None:
        """`alarm` rings when `expire` is to be called."""
        self._queue = queue
        self._operations = operations
        self._floor = floor
        self._absence = absence
        self._entrance = entrance
        self._completions = completions
        self._journal = journal
        self._alarm = alarm
        self._shutdown = shutdown
        self._by_task: dict[Task, Lease] = {}

    # --- for executors

    @asynccontextmanager
    async def open_lease(self, executor: str) -> AsyncIterator[Lease]:
        """See `Scheduler.lease`."""
        assignment = await self._next_assignment(executor)
        while not _is_current(assignment):  # dropped on its way here
            self._give_back(assignment)
            assignment = await self._next_assignment(executor)
        lease = self._begin(assignment)
        try:
            with self._journal.in_hand(lease.action, executor):
                yield lease
        finally:
            self._give_back(assignment)

    def started(
        self,
        assignment: Assignment,
        metadata: reapi.ExecutedActionMetadata,
        streams: StreamNames | None = None,
    ) -> None:
        """See `Lease.started`."""
        if _is_current(assignment):
            self._operations.tell(assignment.task, Stage.EXECUTING, metadata, streams)

    def renew(self, assignment: Assignment, seconds: float) -> bool:
        """See `Lease.renew`. No life is longer than the server's."""
        if self._shutdown.has_begun:
            seconds = min(seconds, self._shutdown.seconds_left)
        renewed = self._queue.renew(assignment, trio.current_time() + seconds)
        self._alarm.set(self._queue.next_expiry)
        return renewed

    def complete(self, assignment: Assignment, outcome: Outcome) -> bool:
        """See `Lease.complete`."""
        if not _is_current(assignment):
            return False
        self._journal.survived(assignment.task.action)
        self._completions.complete(assignment.task, outcome)
        return True

    async def _next_assignment(self, executor: str) -> Assignment:
        seat = Seat()
        self._floor[executor].idle.append(seat)
        self._floor.hand_over(self._queue.offer(executor, now=trio.current_time()))
        self._entrance.let_in()
        try:
            return await seat.wait()
        except trio.Cancelled:
            self._stop_waiting(executor, seat)
            raise

    def _stop_waiting(self, executor: str, seat: Seat) -> None:
        """A slot stops waiting; a task that reached it in the same moment goes back."""
        if seat.assignment is None:
            self._floor[executor].idle.remove(seat)
            self._queue.withdraw(executor)
        else:
            self._give_back(seat.assignment)

    def _begin(self, assignment: Assignment) -> Lease:
        task = assignment.task
        lease = Lease(self, assignment, self._operations.queued_timestamp(task))
        self._by_task[task] = lease
        if self._shutdown.has_begun:
            lease.renew(self._shutdown.seconds_left)
        return lease

    # --- how they end

    def is_filing(self, task: Task) -> bool:
        """Whether the result of `task` is on its way into the action cache."""
        lease = self._by_task.get(task)
        return lease is not None and lease.is_filing

    def drop(self, task: Task) -> None:
        """Nobody wants `task`: it is taken out of the queue, or stopped where it runs."""
        self._completions.drop(task)
        if lease := self._by_task.get(task):
            lease.scope.cancel()
        else:
            self._operations.forget(task)

    def expire(self, now: float) -> None:
        """Take back what was not renewed in time (SCH-05)."""
        for assignment in self._queue.expired(now):
            self._lose(assignment)

    def limit(self, seconds: float) -> None:
        """All live for so long from now on, unless they are renewed."""
        for lease in self._by_task.values():
            lease.renew(seconds)

    def take_back(self) -> None:
        """Take back all that executors have."""
        for task in self._operations.tasks:
            if task.held is not None and _is_current(task.held):
                self._lose(task.held)

    def _give_back(self, assignment: Assignment) -> None:
        """A slot lets go of what it was given."""
        task = assignment.task
        if _is_current(assignment):
            self._lose(assignment)
        if task.held is assignment:
            self._by_task.pop(task, None)
            self._operations.forget(task)
        self._floor[assignment.executor].busy -= 1
        self._floor.hand_over(self._queue.release(assignment, now=trio.current_time()))

    def _lose(self, assignment: Assignment) -> None:
        """A slot has a task no longer: it is run again, a bounded number of times."""
        task = assignment.task
        counted = False
        if lease := self._by_task.pop(task, None):
            lease.scope.cancel()
            # What never reached a slot, and what a server that stops takes back, is nobody's fault.
            counted = not self._shutdown.has_begun
            if counted and self._is_last(lease):
                return
        self._operations.queued_again(task)
        self._floor.hand_over(self._queue.requeue(task, now=trio.current_time(), counted=counted))
        if task in self._queue.stranded:
            self._absence.tell(task)
        self._shutdown.note_if_all_ended()

    def _is_last(self, lease: Lease) -> bool:
        """A loss counts. Returns whether it was one too many, and has ended the task (OPS-14)."""
        task, executor = lease.assignment
        self._floor[executor].lost += 1
        self._journal.lost(task.action, executor, lease.began_nanoseconds)
        error = self._journal.losses.verdict(task.action)
        if error:
            self._completions.complete(task, Outcome(error=error))
        return error is not None


def _is_current(assignment: Assignment) -> bool:
    """Whether the task still runs, and by this."""
    task = assignment.task
    return task.held is assignment and task.stage is Stage.EXECUTING
