"""The way into the queue: what is refused, and what has to wait before it."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import trio

from stoker.action import LoadedAction, Outcome
from stoker.errors import Overloaded, StokerError
from stoker.scheduler.journal_rows import seconds_since
from stoker.scheduler.suspects import Suspects, Waiting
from stoker.scheduler.task import Assignment, Task

if TYPE_CHECKING:
    from stoker.scheduler.absence import Absence
    from stoker.scheduler.admission import Limits
    from stoker.scheduler.floor import Floor
    from stoker.scheduler.losses import Losses
    from stoker.scheduler.operations import Operations
    from stoker.scheduler.queue import Queue


Queued = tuple[Task, list[Assignment]]
"""What the queue made of an action: its task, and what it handed out, to be passed on once the
task runs for somebody."""


class Entrance:
    """Queues actions. Suspects that have too many others beside them wait until those are gone."""

    def __init__(
        self,
        queue: Queue,
        operations: Operations,
        floor: Floor,
        absence: Absence,
        *,
        limits: Limits,
        losses: Losses,
    ) -> None:
        self._queue = queue
        self._operations = operations
        self._floor = floor
        self._absence = absence
        self._limits = limits
        self._losses = losses
        self._suspects = Suspects(losses)

    def queue(
        self, action: LoadedAction, priority: int, executors: Collection[str]
    ) -> Queued | None:
        """Queue `action`, or nothing where it has to wait. To be followed by `enter`.

        Raises Quarantined for an action that was lost too often (SCH-10); InvalidRequest,
        FailedPrecondition where no executor matches: see `Queue.add`; Overloaded where a limit is
        reached (EXE-25). Then it leaves nothing behind.
        """
        now = trio.current_time()
        self._losses.check(action)
        self._limits.in_flight.check(action.principal, now)
        if not self._queue.in_flight(action):
            self._limits.queued.check_client(action.principal, now)
        if not self._suspects.may_enter(action):
            # It waits like any other.
            self._limits.queued.check(action.principal, now)
            return None
        try:
            return self._queue.add(action, priority, executors, now=now)
        except Overloaded:
            raise self._limits.queued.refusal(now) from None

    def enter(self, waiting: Waiting, queued: Queued | None) -> None:
        """The operation waits for what was `queued` for it; None: it is kept until it may enter."""
        if queued is None:
            self._suspects.hold(waiting)
            self._operations.count_waiting(waiting.operation)
            return
        task, assignments = queued
        is_first = self._operations.join(waiting.operation, task)
        if is_first:
            self._suspects.entered(task.action)
        self._floor.hand_over(assignments)
        if is_first and task in self._queue.stranded:
            self._absence.tell(task)

    def resume(self, waiting: Waiting) -> None:
        """Queue what a server before this one had accepted. What forbids that ends it."""
        if not waiting.operation.outcome:
            self._try_to_enter(waiting)

    def let_in(self) -> None:
        """Queue those that were kept, as far as it goes now."""
        while waiting := self._suspects.next_to_enter():
            if not self._try_to_enter(waiting):
                break

    def left(self, action: LoadedAction) -> None:
        """A task of `action` has ended. To be followed by `let_in`."""
        self._suspects.left(action)

    def _try_to_enter(self, waiting: Waiting) -> bool:
        """Returns False where it has to wait on."""
        try:
            queued = self._queue_again(waiting)
        except StokerError as error:
            self._operations.end(waiting.operation, Outcome(error=error))
            return True
        self.enter(waiting, queued)
        return queued is not None

    def _queue_again(self, waiting: Waiting) -> Queued | None:
        """As `queue`, of what was accepted before: no limit refuses it, it only has to wait."""
        operation, action, priority, executors = waiting
        if not self._suspects.may_enter(action):
            return None
        self._losses.check(action)
        queued_at = trio.current_time() - seconds_since(operation.queued_nanoseconds)
        try:
            return self._queue.add(action, priority, executors, now=queued_at)
        except Overloaded:
            return None
