"""The trio face of the queue: operations, leases, and the wait between them."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Collection, Hashable, Iterable, Mapping
from contextlib import asynccontextmanager, contextmanager
from time import time_ns
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
from stoker.errors import Cancelled, Overloaded, StokerError, Unavailable
from stoker.protos import remote_execution_pb2 as reapi
from stoker.resources import Share
from stoker.scheduler.course import Courses, Note
from stoker.scheduler.journal import Journal
from stoker.scheduler.journal_rows import Request, seconds_since
from stoker.scheduler.leasing import Lease, Seat
from stoker.scheduler.losses import key_of
from stoker.scheduler.operation import Operation, timestamp
from stoker.scheduler.queue import Assignment, Queue, Stage, Task, merge_key
from stoker.scheduler.records import Records
from stoker.scheduler.suspects import Suspects, Waiting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from google.protobuf.timestamp_pb2 import Timestamp

    from stoker.scheduler.journal_rows import Kept
    from stoker.scheduler.matching import Offer
    from stoker.scheduler.settings import SchedulerSettings
    from stoker.scheduler.waiting import Outlook

_REMEMBERED_ENDS = 4096
"""How many runs that have ended are remembered: more than end while the action cache is asked."""


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
        self._queue = Queue(executors, max_queued=settings.max_queued, policy=settings.policy)
        self._courses = Courses(self._queue, note)
        self._settings = settings
        self._nursery = nursery
        self._journal = journal
        self._suspects = Suspects(journal.losses)
        self._stopping = False
        self._records = Records(
            retention_seconds=settings.retention_seconds,
            max_retained_bytes=settings.max_retained_bytes,
            forgotten=journal.forgotten,
        )
        self._limits = settings.limits(trio.current_time())
        self._ends: OrderedDict[Hashable, int] = OrderedDict()
        self._end_count = 0
        self._interest: dict[Task, set[Operation]] = {}
        self._tasks: dict[Operation, Task] = {}
        self._leases: dict[Task, Lease] = {}
        self._idle: dict[str, deque[Seat]] = {e: deque() for e in executors}

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
        for a later server to do; `cache` is what that said, for the records. Raises Quarantined
        for an action that was lost too often (SCH-10); InvalidRequest, FailedPrecondition where
        none matches: see `Queue.add`; Overloaded where a limit is reached (EXE-25). Then it leaves
        nothing behind.
        """
        self._journal.losses.check(action)
        time = trio.current_time()
        self._limits.in_flight.check(action.principal, time)
        if not self._queue.in_flight(action):
            self._limits.queued.check_client(action.principal, time)
        task = None
        assignments: Iterable[Assignment] = ()
        if self._suspects.may_enter(action):
            try:
                task, assignments = self._queue.add(action, priority, executors, now=time)
            except Overloaded:
                raise self._limits.queued.refusal(time) from None
        self._records.drop_expired(time)
        operation = self._records.add(action, inlined)
        operation.queued_nanoseconds, operation.cache = time_ns(), cache
        self._take_in(operation)
        if task:
            self._attach(operation, task)
        else:
            self._suspects.hold(Waiting(operation, action, priority, executors))
        self._journal.accepted(operation, Request(priority, skip_cache_lookup, action.metadata))
        self._hand_over(assignments)
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

        Raises Overloaded where a limit is reached.
        """
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
            and (lease := self._leases.get(task))
            and lease.is_filing
            and (twin := next(iter(self._interest[task]), None))
        ):
            await twin.wait_completed()

    @property
    def end_count(self) -> int:
        """How many runs have ended so far."""
        return self._end_count

    def ended_since(self, action: LoadedAction, count: int) -> bool:
        """Whether a run of `action` has ended since `end_count` was `count`.

        Then the action cache may know now what it did not know when it was asked.
        """
        return self._ends.get(merge_key(action), -1) >= count

    def submit_completed(
        self, action: LoadedAction, outcome: Outcome, inlined: Inlined = NOTHING_INLINED
    ) -> Operation:
        """An operation that has its outcome already, from the action cache (EXE-18)."""
        self._records.drop_expired(trio.current_time())
        operation = self._records.add(action, inlined)
        operation.stage, operation.outcome = Stage.COMPLETED, outcome
        self._records.retain(operation, trio.current_time())
        self._courses.answered(action, operation, outcome)
        return operation

    def run_of(self, operation: Operation) -> RunRecord | None:
        """What is known of the run that `operation` waits for; None where it has none, or no more.

        One that has none has ended, or is kept back: see `Suspects`.
        """
        task = self._tasks.get(operation)
        return self._courses.record(task) if task else None

    def outlook(self, operation: Operation) -> Outlook | None:
        """Why `operation` waits for an executor now; None where it does not."""
        task = self._tasks.get(operation)
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
        task = self._tasks.get(operation)
        self._end(operation, Outcome(error=Cancelled(f"operation {operation.name} was cancelled")))
        if task and not self._interest[task]:
            self._drop(task)

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

    @contextmanager
    def watching(self, operation: Operation) -> Iterator[None]:
        """Somebody waits for `operation`. Once nobody does, it is abandoned after a while."""
        operation.watchers += 1
        try:
            yield
        finally:
            operation.watchers -= 1
            operation.departures += 1
            if operation.watchers == 0 and not (operation.outcome or self._stopping):
                self._nursery.start_soon(self._abandon_later, operation, operation.departures)

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

    # --- for a server that starts or stops

    def restore(self, kept: Sequence[Kept]) -> list[Kept]:
        """Know the operations that a server before this one accepted, under their names.

        Returns those that have not ended. Each of them has to be told to `resume` or to `end`.
        """
        unfinished = []
        for each in kept:
            self._records.restore(each.operation)
            if not each.operation.outcome:
                self._take_in(each.operation)
                unfinished.append(each)
        for each in sorted(kept, key=lambda each: each.ended_nanoseconds):
            if each.operation.outcome:
                ended = trio.current_time() - seconds_since(each.ended_nanoseconds)
                self._records.retain(each.operation, ended)
        self._nursery.start_soon(self._await_clients, [each.operation for each in unfinished])
        return unfinished

    def resume(
        self,
        operation: Operation,
        action: LoadedAction,
        *,
        priority: int,
        executors: Collection[str],
    ) -> None:
        """Run what was restored. What forbids that ends the operation."""
        if operation.outcome:
            return
        waiting = Waiting(operation, action, priority, executors)
        if not self._suspects.may_enter(action):
            self._suspects.hold(waiting)
            return
        age = seconds_since(operation.queued_nanoseconds)
        try:
            self._journal.losses.check(action)
            task, assignments = self._queue.add(
                action, priority, executors, now=trio.current_time() - age
            )
        except Overloaded:
            self._suspects.hold(waiting)
        except StokerError as error:
            self._end(operation, Outcome(error=error))
        else:
            self._attach(operation, task)
            self._hand_over(assignments)

    def end(self, operation: Operation, outcome: Outcome) -> None:
        """End an operation that was restored and not resumed. Does nothing if it has ended."""
        if not operation.outcome:
            self._end(operation, outcome)

    def stop(self) -> None:
        """The server stops: what it does not finish is for the next one.

        From here on no operation is abandoned, and no lease that ends counts as a loss.
        """
        self._stopping = True

    # --- for executors

    @asynccontextmanager
    async def lease(self, executor: str) -> AsyncIterator[Lease]:
        """Wait for a task for a free slot of `executor`.

        Leaving without `Lease.complete` hands the task back: it is run again elsewhere, a bounded
        number of times.
        """
        assignment = await self._next_assignment(executor)
        while assignment.task.stage is Stage.COMPLETED:  # dropped on its way here
            self._give_back(assignment)
            assignment = await self._next_assignment(executor)
        task = assignment.task
        lease = self._leases[task] = Lease(self, task, self._queued_timestamp(task))
        began = time_ns()
        try:
            with self._journal.in_hand(task.action, executor):
                yield lease
        finally:
            del self._leases[task]
            self._note_loss(task, executor, began)
            self._give_back(assignment)

    def started(self, task: Task, metadata: reapi.ExecutedActionMetadata) -> None:
        """The process of `task` is about to start."""
        self._tell(task, Stage.EXECUTING, metadata)

    async def _next_assignment(self, executor: str) -> Assignment:
        seat = Seat()
        self._idle[executor].append(seat)
        self._hand_over(self._queue.offer(executor, now=trio.current_time()))
        try:
            return await seat.wait()
        except trio.Cancelled:
            self._stop_waiting(executor, seat)
            raise

    def _stop_waiting(self, executor: str, seat: Seat) -> None:
        """A slot stops waiting; a task that reached it in the same moment goes back."""
        if seat.assignment is None:
            self._idle[executor].remove(seat)
            self._queue.withdraw(executor)
        else:
            self._give_back(seat.assignment)

    # --- state, changed between awaits only

    def _hand_over(self, assignments: Iterable[Assignment]) -> None:
        for assignment in assignments:
            self._idle[assignment.executor].popleft().put(assignment)

    def _tell(self, task: Task, stage: Stage, metadata: reapi.ExecutedActionMetadata) -> None:
        twins = self._interest[task]
        # One message for all of them: they have been told the same so far.
        run = reapi.ExecutedActionMetadata()
        known = next((twin.run for twin in twins), None)
        if known is not None:
            run.CopyFrom(known)
        run.MergeFrom(metadata)
        for operation in twins:
            operation.run = run
            self._move(operation, stage)
            operation.announce()

    def _attach(self, operation: Operation, task: Task) -> None:
        """`operation` is one that `task` runs for, and stands as its twins do."""
        self._tasks[operation] = task
        if task not in self._interest:
            self._suspects.entered(task.action)
        twins = self._interest.setdefault(task, set())
        if twin := next(iter(twins), None):
            operation.run = twin.run
            self._move(operation, twin.stage)
        twins.add(operation)
        self._courses.join(task, operation)

    def _let_in(self) -> None:
        """Queue those that waited for a suspect that has ended."""
        while waiting := self._suspects.next_to_enter():
            operation, action, priority, executors = waiting
            self.resume(operation, action, priority=priority, executors=executors)
            if operation not in self._tasks and not operation.outcome:
                break

    def _take_in(self, operation: Operation) -> None:
        """`operation` is new, and counts from now on."""
        self._limits.in_flight.enter(operation.principal, trio.current_time())
        if operation.stage is Stage.QUEUED:
            self._limits.queued.enter(operation.principal, trio.current_time())

    def _move(self, operation: Operation, stage: Stage) -> None:
        """`operation` goes on to `stage`, or back to it."""
        was_queued, is_queued = operation.stage is Stage.QUEUED, stage is Stage.QUEUED
        operation.stage = stage
        if was_queued and not is_queued:
            self._limits.queued.leave(operation.principal, trio.current_time())
        if is_queued and not was_queued:
            self._limits.queued.enter(operation.principal, trio.current_time())
        if stage is Stage.COMPLETED:
            self._limits.in_flight.leave(operation.principal, trio.current_time())

    def complete(self, task: Task, outcome: Outcome) -> None:
        """`task` has ended; everybody who waits is told. Later calls change nothing."""
        self._journal.survived(task.action)
        self._complete(task, outcome)

    def _complete(self, task: Task, outcome: Outcome) -> None:
        assignments = self._leave_queue(task)
        self._note_end(task)
        self._courses.end(task, outcome)
        for operation in tuple(self._interest.get(task, ())):
            self._end(operation, outcome)
        self._interest.pop(task, None)
        self._hand_over(assignments)
        self._let_in()

    def _leave_queue(self, task: Task) -> Iterable[Assignment]:
        if task.stage is not Stage.COMPLETED:
            self._suspects.left(task.action)
        return self._queue.complete(task, now=trio.current_time())

    def _queued_timestamp(self, task: Task) -> Timestamp:
        return timestamp(min(operation.queued_nanoseconds for operation in self._interest[task]))

    def _note_end(self, task: Task) -> None:
        self._ends[task.merge_key] = self._end_count
        self._ends.move_to_end(task.merge_key)
        self._end_count += 1
        while len(self._ends) > _REMEMBERED_ENDS:
            self._ends.popitem(last=False)

    def _end(self, operation: Operation, outcome: Outcome) -> None:
        if task := self._tasks.pop(operation, None):
            self._interest[task].discard(operation)
        operation.outcome = outcome
        self._move(operation, Stage.COMPLETED)
        self._journal.ended(operation)
        self._records.retain(operation, trio.current_time())
        operation.announce()

    def _drop(self, task: Task) -> None:
        """Nobody wants `task`: it is taken out of the queue, or stopped where it runs."""
        self._hand_over(self._leave_queue(task))
        self._courses.end(task, Outcome(error=Cancelled("nobody wanted it any longer")))
        if lease := self._leases.get(task):
            lease.scope.cancel()
        else:
            self._interest.pop(task, None)
        self._let_in()

    def _note_loss(self, task: Task, executor: str, began_nanoseconds: int) -> None:
        """A slot lets go of `task`, which it was handed at this time of day."""
        if task.stage is not Stage.COMPLETED and not self._stopping:
            self._journal.lost(task.action, executor, began_nanoseconds)

    def _give_back(self, assignment: Assignment) -> None:
        """A slot lets go of what it was given."""
        task, losses = assignment.task, self._journal.losses
        if task.stage is not Stage.COMPLETED and not losses.spent(key_of(task.action)):
            self._tell(task, Stage.QUEUED, reapi.ExecutedActionMetadata())
            self._hand_over(self._queue.requeue(task, now=trio.current_time()))
            self._hand_over(self._queue.release(assignment, now=trio.current_time()))
            return
        if task.stage is not Stage.COMPLETED:
            lost = losses.executors(key_of(task.action))
            error = Unavailable(
                f"the action was lost {len(lost)} times by its executors: {', '.join(lost)}"
            )
            self._complete(task, Outcome(error=error))
        self._interest.pop(task, None)
        self._hand_over(self._queue.release(assignment, now=trio.current_time()))

    async def _abandon_later(self, operation: Operation, departure: int) -> None:
        await trio.sleep(self._settings.abandoned_after_seconds)
        if operation.watchers == 0 and operation.departures == departure:
            self.cancel(operation)

    async def _await_clients(self, restored: Iterable[Operation]) -> None:
        await trio.sleep(self._settings.reconnect_seconds)
        for operation in restored:
            if operation.watchers == 0 and operation.departures == 0:
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
