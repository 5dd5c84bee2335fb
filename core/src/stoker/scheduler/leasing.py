"""What a slot holds: the seat on which it waits for a task, and the lease of one that came."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

    from stoker.action import LoadedAction, Outcome
    from stoker.protos import remote_execution_pb2 as reapi
    from stoker.scheduler.queue import Assignment, Task
    from stoker.scheduler.scheduler import Scheduler


class Lease:
    """A task in the hands of an executor's slot."""

    def __init__(self, scheduler: Scheduler, task: Task, queued_timestamp: Timestamp) -> None:
        self._scheduler = scheduler
        self._task = task
        self.queued_timestamp = queued_timestamp
        """When the first of the task's operations was accepted."""
        self.scope = trio.CancelScope()
        """Cancelled when no operation wants the task any more."""
        self.is_filing = False
        """Whether its result is on its way into the action cache, and may be seen there."""

    @property
    def action(self) -> LoadedAction:
        return self._task.action

    def started(self, metadata: reapi.ExecutedActionMetadata) -> None:
        """The action's process is about to start."""
        self._scheduler.started(self._task, metadata)

    def complete(self, outcome: Outcome) -> None:
        """The task has ended; everybody who waits is told. Later calls change nothing."""
        self._scheduler.complete(self._task, outcome)


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
