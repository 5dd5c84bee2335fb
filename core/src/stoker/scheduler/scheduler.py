"""What the rest of the server knows of scheduling: one object, made of the rooms beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from typing import TYPE_CHECKING

import trio

from stoker.action import (
    NOTHING_INLINED,
    UNKNOWN_ANSWER,
    CacheAnswer,
    Inlined,
    LoadedAction,
    Outcome,
    RunRecord,
)
from stoker.alarm import Alarm
from stoker.errors import Cancelled
from stoker.resources import Share
from stoker.scheduler.absence import Absence
from stoker.scheduler.completions import Completions
from stoker.scheduler.course import Courses, Note
from stoker.scheduler.departures import Departures
from stoker.scheduler.entrance import Entrance
from stoker.scheduler.floor import ExecutorState, Floor, WaitingLine
from stoker.scheduler.journal import Journal
from stoker.scheduler.journal_rows import Request
from stoker.scheduler.leasing import Lease, Leases
from stoker.scheduler.operation import Operation
from stoker.scheduler.operations import Operations
from stoker.scheduler.queue import Queue
from stoker.scheduler.records import Records
from stoker.scheduler.shutdown import Shutdown
from stoker.scheduler.suspects import Waiting
from stoker.scheduler.task import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stoker.scheduler.journal_rows import Kept
    from stoker.scheduler.matching import Offer
    from stoker.scheduler.settings import SchedulerSettings
    from stoker.scheduler.waiting import Outlook


class Scheduler:
    """Accepts actions, hands them to executors, and tells everybody who waits.

    Open it with `open_scheduler`. Every method that changes state is synchronous: cancellation
    cannot tear it.
    """

    def __init__(
        self,
        executors: Mapping[str, Offer],
        settings: SchedulerSettings,
        nursery: trio.Nursery,
        journal: Journal,
        note: Note | None = None,
    ) -> None:
        self._settings = settings
        self._nursery = nursery
        self._journal = journal
        self._limits = limits = settings.limits(trio.current_time())
        self._records = Records(
            retention_seconds=settings.retention_seconds,
            max_retained_bytes=settings.max_retained_bytes,
            forgotten=journal.forgotten,
        )
        # Each of these knows some of those before it, and none after it.
        self._alarm = alarm = Alarm(self._look_at_clock)
        self._queue = queue = Queue(
            executors, max_queued=settings.max_queued, policy=settings.policy
        )
        self._shutdown = shutdown = Shutdown(queue)
        self._operations = operations = Operations(
            self._records, limits, journal, Courses(queue, note)
        )
        self._floor = floor = Floor(executors, operations)
        self._absence = absence = Absence(
            queue, operations, floor, alarm, settings.wait_for_executor_seconds
        )
        self._entrance = entrance = Entrance(
            queue, operations, floor, absence, limits=limits, losses=journal.losses
        )
        self._completions = completions = Completions(queue, operations, floor, entrance, shutdown)
        self._leases = Leases(
            queue,
            operations,
            floor,
            absence=absence,
            entrance=entrance,
            completions=completions,
            journal=journal,
            alarm=alarm,
            shutdown=shutdown,
        )
        self._departures = Departures(self._abandon, settings.abandoned_after_seconds)
        nursery.start_soon(alarm.run)
        nursery.start_soon(self._departures.run)

    # --- for the frontend

    def submit(
        self,
        action: LoadedAction,
        *,
        priority: int,
        executors: Collection[str],
        inlined: Inlined = NOTHING_INLINED,
        skip_cache_lookup: bool = False,
        cache: CacheAnswer = UNKNOWN_ANSWER,
    ) -> Operation:
        """Accept `action`, to run on one of `executors`, or to share a twin's run.

        `skip_cache_lookup` is whether it has to run whatever the action cache has, should that be
        for a later server to do; `cache` is what that said, for the records. Raises what
        `Entrance.queue` does, and Draining from `stop` on. Then it leaves nothing behind.
        """
        self._shutdown.check()
        queued = self._entrance.queue(action, priority, executors)
        request = Request(priority, skip_cache_lookup, action.metadata)
        operation = self._operations.accept(action, request, inlined, cache)
        self._entrance.enter(Waiting(operation, action, priority, executors), queued)
        return operation

    def join(
        self,
        action: LoadedAction,
        *,
        priority: int,
        inlined: Inlined = NOTHING_INLINED,
        skip_cache_lookup: bool = False,
    ) -> Operation | None:
        """An operation that shares the run of an identical action in flight, if there is one.

        Raises Overloaded where a limit is reached; Draining from `stop` on.
        """
        self._shutdown.check()
        if not self._queue.in_flight(action):
            return None
        return self.submit(
            action,
            priority=priority,
            executors=(),
            inlined=inlined,
            skip_cache_lookup=skip_cache_lookup,
        )

    async def wait_recorded(self, operation: Operation) -> None:
        """Wait until `operation` outlives the server, as far as it ever will (SCH-07).

        Nobody should hear its name before. Calls may overlap; cancellation leaves nothing behind.
        """
        await self._journal.wait_recorded(operation)

    async def wait_filed(self, action: LoadedAction) -> None:
        """Wait while the result of an identical action is being filed.

        It can be seen in the action cache by then: to share it would be to look it up (EXE-19).
        """
        while (
            (task := self._queue.in_flight(action))
            and self._leases.is_filing(task)
            and (twin := self._operations.any_of(task))
        ):
            await twin.wait_completed()

    @property
    def end_count(self) -> int:
        """How many runs have ended so far."""
        return self._completions.count

    def ended_since(self, action: LoadedAction, count: int) -> bool:
        """Whether a run of `action` has ended since `end_count` was `count`.

        Then the action cache may know now what it did not know when it was asked.
        """
        return self._completions.since(action, count)

    def submit_completed(
        self, action: LoadedAction, outcome: Outcome, inlined: Inlined = NOTHING_INLINED
    ) -> Operation:
        """An operation that has its outcome already, from the action cache (EXE-18)."""
        return self._operations.answered(action, outcome, inlined)

    def run_of(self, operation: Operation) -> RunRecord | None:
        """What is known of the run that `operation` waits for; None where it has none, or no more.

        One that has none has ended, or is kept back: see `Suspects`.
        """
        return self._operations.run_of(operation)

    def outlook(self, operation: Operation) -> Outlook | None:
        """Why `operation` waits for an executor now; None where it does not."""
        task = self._operations.task_of(operation)
        return self._queue.outlook(task) if task and task.stage is Stage.QUEUED else None

    def find(self, name: str, principal: str) -> Operation:
        """The operation of this name, if it is this client's. Raises OperationNotFound."""
        self._records.drop_expired(trio.current_time())
        return self._records.find(name, principal)

    def operations_after(self, number: int) -> Sequence[Operation]:
        """All operations that are known and came after that with `number`, oldest first."""
        self._records.drop_expired(trio.current_time())
        return self._records.after(number)

    def forget(self, operation: Operation) -> None:
        """`operation` cannot be asked for any more. Its run, and who waits for it, go on."""
        self._records.forget(operation)

    def cancel(self, operation: Operation) -> None:
        """End `operation` as cancelled; its run goes on if other operations share it (OPS-18)."""
        if operation.stage is Stage.COMPLETED:
            return
        task = self._operations.task_of(operation)
        error = Cancelled(f"operation {operation.name} was cancelled")
        self._operations.end(operation, Outcome(error=error))
        if task and not self._operations.is_wanted(task):
            self._leases.drop(task)

    @contextmanager
    def waiting(self, principal: str) -> Iterator[None]:
        """A call of this client waits for an operation, or is about to have one.

        Raises Overloaded where there are too many (EXE-25).
        """
        self._limits.streams.check(principal, trio.current_time())
        self._limits.streams.enter(principal, trio.current_time())
        try:
            yield
        finally:
            self._limits.streams.leave(principal, trio.current_time())

    def watching(self, operation: Operation) -> AbstractContextManager[None]:
        """Somebody waits for `operation`. Once nobody does, it is abandoned after a while."""
        return self._departures.watching(operation)

    @property
    def queued(self) -> int:
        """How many actions wait for an executor."""
        return self._queue.queued

    @property
    def executing(self) -> int:
        """How many actions are in the hands of executors."""
        return self._queue.executing

    def free(self, executor: str) -> Share:
        """The processors and memory of `executor` that no action has."""
        return self._queue.free(executor)

    def waiting_by_executors(self) -> dict[frozenset[str], WaitingLine]:
        """What waits, by the executors that could run it."""
        now = trio.current_time()
        return {
            names: WaitingLine(line.tasks, now - line.oldest_at)
            for names, line in self._queue.waiting().items()
        }

    def executors(self) -> list[ExecutorState]:
        """How each stands now."""
        return self._floor.states(self._absence.reasons)

    # --- for a server that begins

    def restore(self, kept: Sequence[Kept]) -> list[Kept]:
        """Know the operations that a server before this one accepted, under their names.

        Returns those that have not ended. Each of them has to be told to `resume` or to `end`.
        """
        unfinished = self._operations.restore(kept)
        restored = [each.operation for each in unfinished]
        self._nursery.start_soon(
            self._departures.await_return, restored, self._settings.reconnect_seconds
        )
        return unfinished

    def resume(self, waiting: Waiting) -> None:
        """Run what was restored. What forbids that ends the operation."""
        self._entrance.resume(waiting)

    def end(self, operation: Operation, outcome: Outcome) -> None:
        """End an operation that was restored and not resumed. Does nothing if it has ended."""
        if not operation.outcome:
            self._operations.end(operation, outcome)

    # --- for whoever runs the server

    def detach(self, executor: str, reason: str) -> None:
        """`executor` takes nothing new until `attach`; what it has it may end.

        What only it could run waits, and is told that it is away for `reason`, words that follow
        its name. No error if it is away already.
        """
        self._absence.detach(executor, reason)

    def attach(self, executor: str) -> None:
        """`executor` takes actions again. No error if it does anyway."""
        self._absence.attach(executor)

    def stop(self, within_seconds: float) -> None:
        """Take nothing new and begin nothing. What runs is lost after `within_seconds`."""
        if not self._shutdown.has_begun:
            self._shutdown.begin(within_seconds)
            self._leases.limit(within_seconds)

    async def drain(self, within_seconds: float) -> None:
        """`stop`, wait until nothing runs, and hand back the rest (SCH-06).

        What is handed back is queued, its last attempt not counted, and whoever waits for it is
        told to come again. Cancellation hands it back at once.
        """
        self.stop(within_seconds)
        try:
            await self._shutdown.wait_all_ended()
        finally:
            self._hand_back()

    # --- for executors

    def lease(self, executor: str) -> AbstractAsyncContextManager[Lease]:
        """Wait for a task for a free slot of `executor`.

        Leaving without `Lease.complete` hands the task back: it is run again elsewhere, a bounded
        number of times.
        """
        return self._leases.open_lease(executor)

    # --- state, changed between awaits only

    def _look_at_clock(self) -> None:
        now = trio.current_time()
        self._leases.expire(now)
        if not self._shutdown.has_begun:
            for task, error in self._absence.overdue(now):
                self._completions.complete(task, Outcome(error=error))
            self._absence.set_alarm()
        self._alarm.set(self._queue.next_expiry)

    def _hand_back(self) -> None:
        self._leases.take_back()
        for operation in self._operations.in_flight:
            operation.hand_back(self._shutdown.refusal())

    def _abandon(self, operation: Operation) -> None:
        # The next server sees whether its client comes back.
        if not operation.handed_back:
            self.cancel(operation)


@asynccontextmanager
async def open_scheduler(
    executors: Mapping[str, Offer],
    settings: SchedulerSettings,
    journal: Journal | None = None,
    note: Note | None = None,
) -> AsyncIterator[Scheduler]:
    """A scheduler for executors of these names, and what they offer; `note` is told of each run.

    It forgets all when it ends, without a journal that is open.
    """
    async with trio.open_nursery() as nursery:
        try:
            yield Scheduler(executors, settings, nursery, journal or Journal(settings.bounds), note)
        finally:
            nursery.cancel_scope.cancel()
