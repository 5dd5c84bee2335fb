"""What a slot holds: the seat on which it waits for a task, and the lease of one that came."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from stoker.action import LoadedAction, Outcome
    from stoker.log_streams.names import StreamNames
    from stoker.protos import remote_execution_pb2 as reapi
    from stoker.scheduler.queue import Assignment
    from stoker.scheduler.scheduler import Scheduler


class Lease:
    """A task in the hands of an executor's slot, until it lets go of it.

    The slot may lose it before that: when its life is over, or the server is about to end. Then
    `scope` is cancelled, the task is run again, and what the slot still says of it is not heard
    (SCH-05). One that was never renewed has no life of its own: it lasts as long as its context.
    """

    def __init__(
        self, scheduler: Scheduler, assignment: Assignment, queued_timestamp: Timestamp
    ) -> None:
        self._scheduler = scheduler
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
        self._scheduler.started(self.assignment, metadata, streams)

    def renew(self, seconds: float) -> bool:
        """It lives for so long from now on, and is lost then unless it is renewed again.

        Returns False if it has been lost, or its task has ended.
        """
        return self._scheduler.renew(self.assignment, seconds)

    def complete(self, outcome: Outcome) -> bool:
        """The task has ended; everybody who waits is told.

        Returns False, and changes nothing, if it has ended before or the lease has been lost.
        """
        return self._scheduler.complete(self.assignment, outcome)


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
