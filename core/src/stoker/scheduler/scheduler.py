"""The trio face of the queue: operations, leases, and the wait between them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Hashable, Iterable, Mapping
from contextlib import asynccontextmanager, contextmanager
from itertools import takewhile
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
from stoker.alarm import Alarm
from stoker.errors import Cancelled, Draining, Overloaded, StokerError
from stoker.log_streams.names import StreamNames
from stoker.protos import remote_execution_pb2 as reapi
from stoker.resources import Share
from stoker.scheduler.absence import none_came, waiting_note, with_note
from stoker.scheduler.course import Courses, Note
from stoker.scheduler.departures import Departures
from stoker.scheduler.floor import ExecutorState, Floor, WaitingLine
from stoker.scheduler.journal import Journal
from stoker.scheduler.journal_rows import Request, seconds_since
from stoker.scheduler.leasing import Lease, Seat
from stoker.scheduler.operation import Operation, timestamp
from stoker.scheduler.queue import Assignment, Queue, Stage, Task, merge_key
from stoker.scheduler.records import Records
from stoker.scheduler.suspects import Suspects, Waiting

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from google.protobuf.timestamp_pb2 import Timestamp

    from stoker.protos.scheduling_pb2 import WaitingForExecutor
    from stoker.scheduler.journal_rows import Kept
    from stoker.scheduler.matching import Offer
    from stoker.scheduler.settings import SchedulerSettings
    from stoker.scheduler.waiting import Outlook

_RESTART_SECONDS = 1.0
"""When clients of a server that stops are told to come again, after its end."""

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
        self._unqueued: set[Operation] = set()
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
        self._floor = {name: Floor() for name in executors}
        self._away: dict[str, str] = {}
        self._alarm = Alarm(self._look_at_clock)
        nursery.start_soon(self._alarm.run)
        self._departures = Departures(self._abandon, settings.abandoned_after_seconds)
        nursery.start_soon(self._departures.run)
        self._stops_at: float | None = None
        self._handed_back = False
        self._all_ended = trio.Event()

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
        none matches: see `Queue.add`; Overloaded where a limit is reached (EXE-25); Draining from
        `stop` on. Then it leaves nothing behind.
        """
        time = trio.current_time()
        if self._stops_at is not None:
            raise self._draining()
        self._journal.losses.check(action)
        self._limits.in_flight.check(action.principal, time)
        if not self._queue.in_flight(action):
            self._limits.queued.check_client(action.principal, time)
        queued = None
        if self._suspects.may_enter(action):
            try:
                queued = self._queue.add(action, priority, executors, now=time)
            except Overloaded:
                raise self._limits.queued.refusal(time) from None
        else:
            self._limits.queued.check(action.principal, time)
        self._records.drop_expired(time)
        operation = self._records.add(action, inlined)
        operation.queued_nanoseconds, operation.cache = time_ns(), cache
        self._take_in(operation)
        self._journal.accepted(operation, Request(priority, skip_cache_lookup, action.metadata))
        if queued:
            self._attach(operation, *queued)
        else:
            self._hold(Waiting(operation, action, priority, executors))
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
        if self._stops_at is not None:
            raise self._draining()
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
            ended = operation.stage is Stage.COMPLETED or self._handed_back
            operation.departures += 1
            if operation.watchers == 0 and not ended:
                self._departures.note(operation)

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
        return [
            ExecutorState(name, self._away.get(name), len(floor.idle), floor.busy, floor.lost)
            for name, floor in self._floor.items()
        ]

    # --- for a server that begins

    def restore(self, kept: Sequence[Kept]) -> list[Kept]:
        """Know the operations that a server before this one accepted, under their names.

        Returns those that have not ended. Each of them has to be told to `resume` or to `end`.
        """
        unfinished = [each for each in kept if not each.operation.outcome]
        for each in kept:
            self._records.restore(each.operation)
        for each in unfinished:
            self._take_in(each.operation)
            self._unqueued.add(each.operation)
        for each in sorted(kept, key=lambda each: each.ended_nanoseconds):
            if each.operation.outcome:
                ended = trio.current_time() - seconds_since(each.ended_nanoseconds)
                self._records.retain(each.operation, ended)
        self._nursery.start_soon(self._await_clients, [each.operation for each in unfinished])
        return unfinished

    def resume(self, waiting: Waiting) -> None:
        """Run what was restored. What forbids that ends the operation."""
        operation, action, priority, executors = waiting
        if operation.outcome:
            return
        if not self._suspects.may_enter(action):
            self._hold(waiting)
            return
        queued_at = trio.current_time() - seconds_since(operation.queued_nanoseconds)
        try:
            self._journal.losses.check(action)
            queued = self._queue.add(action, priority, executors, now=queued_at)
        except Overloaded:
            self._hold(waiting)
        except StokerError as error:
            self._end(operation, Outcome(error=error))
        else:
            self._attach(operation, *queued)

    def end(self, operation: Operation, outcome: Outcome) -> None:
        """End an operation that was restored and not resumed. Does nothing if it has ended."""
        if not operation.outcome:
            self._end(operation, outcome)

    # --- for whoever runs the server

    def detach(self, executor: str, reason: str) -> None:
        """`executor` takes nothing new until `attach`; what it has it may end.

        What only it could run waits, and is told that it is away for `reason`, words that follow
        its name. No error if it is away already.
        """
        self._away[executor] = reason
        self._hand_over(self._queue.detach(executor, now=trio.current_time()))
        for task in self._queue.stranded:
            if executor in task.kind.eligible:
                self._tell_what_it_waits_for(task)

    def attach(self, executor: str) -> None:
        """`executor` takes actions again. No error if it does anyway."""
        self._away.pop(executor, None)
        stranded = [*self._queue.stranded]
        assignments = self._queue.attach(executor, now=trio.current_time())
        for task in stranded:
            if task not in self._queue.stranded:
                self._note_for_clients(task, None)
        self._hand_over(assignments)

    def stop(self, within_seconds: float) -> None:
        """Take nothing new and begin nothing. What runs is lost after `within_seconds`."""
        if self._stops_at is None:
            self._stops_at = trio.current_time() + within_seconds
            self._queue.stop()
            for lease in self._leases.values():
                lease.renew(within_seconds)
            self._note_if_all_ended()

    async def drain(self, within_seconds: float) -> None:
        """`stop`, wait until nothing runs, and hand back the rest (SCH-06).

        What is handed back is queued, its last attempt not counted, and whoever waits for it is
        told to come again. Cancellation hands it back at once.
        """
        self.stop(within_seconds)
        try:
            await self._all_ended.wait()
        finally:
            self._hand_back()

    # --- for executors

    @asynccontextmanager
    async def lease(self, executor: str) -> AsyncIterator[Lease]:
        """Wait for a task for a free slot of `executor`.

        Leaving without `Lease.complete` hands the task back: it is run again elsewhere, a bounded
        number of times.
        """
        assignment = await self._next_assignment(executor)
        while not self._is_current(assignment):  # dropped on its way here
            self._give_back(assignment)
            assignment = await self._next_assignment(executor)
        task = assignment.task
        lease = self._leases[task] = Lease(self, assignment, self._queued_timestamp(task))
        if self._stops_at is not None:
            lease.renew(self._stops_at - trio.current_time())
        try:
            with self._journal.in_hand(task.action, executor):
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
        if self._is_current(assignment):
            self._tell(assignment.task, Stage.EXECUTING, metadata, streams)

    def renew(self, assignment: Assignment, seconds: float) -> bool:
        """See `Lease.renew`. No life is longer than the server's."""
        if self._stops_at is not None:
            seconds = min(seconds, self._stops_at - trio.current_time())
        renewed = self._queue.renew(assignment, trio.current_time() + seconds)
        self._alarm.set(self._queue.next_expiry)
        return renewed

    def complete(self, assignment: Assignment, outcome: Outcome) -> bool:
        """See `Lease.complete`."""
        if not self._is_current(assignment):
            return False
        self._journal.survived(assignment.task.action)
        self._complete(assignment.task, outcome)
        return True

    async def _next_assignment(self, executor: str) -> Assignment:
        seat = Seat()
        self._floor[executor].idle.append(seat)
        self._hand_over(self._queue.offer(executor, now=trio.current_time()))
        self._let_in()
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

    # --- state, changed between awaits only

    @staticmethod
    def _is_current(assignment: Assignment) -> bool:
        """Whether the task still runs, and by this."""
        task = assignment.task
        return task.held is assignment and task.stage is Stage.EXECUTING

    def _hand_over(self, assignments: Iterable[Assignment]) -> None:
        for assignment in assignments:
            for operation in self._interest.get(assignment.task, ()):
                self._count_waiting(operation, waits=False)
            floor = self._floor[assignment.executor]
            floor.busy += 1
            floor.idle.popleft().put(assignment)

    def _tell(
        self,
        task: Task,
        stage: Stage,
        metadata: reapi.ExecutedActionMetadata,
        streams: StreamNames | None = None,
    ) -> None:
        twins = self._interest[task]
        # One message for all of them: they have been told the same so far.
        run = reapi.ExecutedActionMetadata()
        known = next((twin.run for twin in twins), None)
        if known is not None:
            run.CopyFrom(known)
            # Facts of an earlier moment are over.
            run.ClearField("auxiliary_metadata")
        run.MergeFrom(metadata)
        for operation in twins:
            operation.stage, operation.run, operation.streams = stage, run, streams
            operation.announce()

    def _attach(self, operation: Operation, task: Task, assignments: Iterable[Assignment]) -> None:
        """`operation` is one that `task` runs for, and stands as its twins do."""
        self._unqueued.discard(operation)
        self._tasks[operation] = task
        if task not in self._interest:
            self._suspects.entered(task.action)
        twins = self._interest.setdefault(task, set())
        twin = next(iter(twins), None)
        if twin is not None:
            operation.stage, operation.run = twin.stage, twin.run
            operation.streams = twin.streams
        twins.add(operation)
        self._courses.join(task, operation)
        self._count_waiting(operation, waits=task.stage is Stage.QUEUED)
        self._hand_over(assignments)
        if task in self._queue.stranded and twin is None:
            self._tell_what_it_waits_for(task)

    def _hold(self, waiting: Waiting) -> None:
        """Keep an operation out of the queue, until there is room or suspects are gone."""
        self._unqueued.add(waiting.operation)
        self._suspects.hold(waiting)
        self._count_waiting(waiting.operation, waits=True)

    def _let_in(self) -> None:
        """Queue those that were held, as far as it goes now."""
        while waiting := self._suspects.next_to_enter():
            self.resume(waiting)
            if waiting.operation in self._unqueued:
                break

    def _take_in(self, operation: Operation) -> None:
        """`operation` is new, and counts from now on."""
        self._limits.in_flight.enter(operation.principal, trio.current_time())

    def _count_waiting(self, operation: Operation, *, waits: bool) -> None:
        """Whether `operation` counts among those that wait for an executor."""
        if operation.waits == waits:
            return
        operation.waits = waits
        if waits:
            self._limits.queued.enter(operation.principal, trio.current_time())
        else:
            self._limits.queued.leave(operation.principal, trio.current_time())

    def _complete(self, task: Task, outcome: Outcome) -> None:
        assignments = self._leave_queue(task)
        self._note_end(task)
        self._courses.end(task, outcome)
        for operation in tuple(self._interest.get(task, ())):
            self._end(operation, outcome)
        self._interest.pop(task, None)
        self._hand_over(assignments)
        self._let_in()
        self._note_if_all_ended()

    def _leave_queue(self, task: Task) -> Iterable[Assignment]:
        if task.stage is not Stage.COMPLETED:
            self._suspects.left(task.action)
        return self._queue.complete(task, now=trio.current_time())

    def _queued_timestamp(self, task: Task) -> Timestamp:
        return timestamp(min(operation.queued_nanoseconds for operation in self._interest[task]))

    def _note_end(self, task: Task) -> None:
        # Nobody looks for others, which would keep their actions here.
        if task.action.cacheable:
            self._ends[task.merge_key] = self._end_count
            self._ends.move_to_end(task.merge_key)
        self._end_count += 1
        while len(self._ends) > _REMEMBERED_ENDS:
            self._ends.popitem(last=False)

    def _end(self, operation: Operation, outcome: Outcome) -> None:
        self._unqueued.discard(operation)
        if task := self._tasks.pop(operation, None):
            self._interest[task].discard(operation)
        operation.stage, operation.outcome = Stage.COMPLETED, outcome
        self._count_waiting(operation, waits=False)
        self._limits.in_flight.leave(operation.principal, trio.current_time())
        self._journal.ended(operation)
        self._records.retain(operation, trio.current_time())
        operation.announce()

    def _drop(self, task: Task) -> None:
        """Nobody wants `task`: it is taken out of the queue, or stopped where it runs."""
        self._hand_over(self._leave_queue(task))
        self._courses.end(task, Outcome(error=Cancelled("nobody wanted it any longer")))
        self._note_if_all_ended()
        if lease := self._leases.get(task):
            lease.scope.cancel()
        else:
            self._interest.pop(task, None)
        self._let_in()

    def _give_back(self, assignment: Assignment) -> None:
        """A slot lets go of what it was given."""
        task = assignment.task
        if self._is_current(assignment):
            self._lose(assignment)
        if task.held is assignment:
            self._leases.pop(task, None)
            self._interest.pop(task, None)
        self._floor[assignment.executor].busy -= 1
        self._hand_over(self._queue.release(assignment, now=trio.current_time()))

    def _lose(self, assignment: Assignment) -> None:
        """A slot has a task no longer: it is run again, a bounded number of times."""
        task, executor = assignment
        counted = False
        if lease := self._leases.get(task):
            lease.scope.cancel()
            # What never reached a slot, and what a server that stops takes back, is nobody's fault.
            counted = self._stops_at is None
        if lease and counted:
            self._floor[executor].lost += 1
            self._journal.lost(task.action, executor, lease.began_nanoseconds)
            if error := self._journal.losses.verdict(task.action):
                self._complete(task, Outcome(error=error))
                return
        self._leases.pop(task, None)
        self._tell(task, Stage.QUEUED, reapi.ExecutedActionMetadata())
        for operation in self._interest[task]:
            self._count_waiting(operation, waits=True)
        self._hand_over(self._queue.requeue(task, now=trio.current_time(), counted=counted))
        if task in self._queue.stranded:
            self._tell_what_it_waits_for(task)
        self._note_if_all_ended()

    # --- what time brings

    def _look_at_clock(self) -> None:
        now = trio.current_time()
        for assignment in self._queue.expired(now):
            self._lose(assignment)
        if self._stops_at is None:
            self._end_waits(now)
        self._set_alarm()

    def _end_waits(self, now: float) -> None:
        wait_seconds = self._settings.wait_for_executor_seconds
        # Only those that are due are looked at, of thousands that may wait.
        waits = self._queue.stranded.items()
        for task, _ in [*takewhile(lambda wait: wait[1] + wait_seconds <= now, waits)]:
            error = none_came(task.kind.eligible, self._away, wait_seconds)
            self._complete(task, Outcome(error=error))

    def _set_alarm(self) -> None:
        self._alarm.set(self._queue.next_expiry)
        # They are in the order in which their wait began.
        first = next(iter(self._queue.stranded.values()), None)
        if first is not None and self._stops_at is None:
            self._alarm.set(first + self._settings.wait_for_executor_seconds)

    def _tell_what_it_waits_for(self, task: Task) -> None:
        """EXE-14."""
        since = self._queue.stranded[task]
        since_ns = time_ns() - round((trio.current_time() - since) * 1e9)
        seconds = self._settings.wait_for_executor_seconds
        note = waiting_note(task.kind.eligible, self._away, since_ns=since_ns, seconds=seconds)
        self._note_for_clients(task, note)
        self._set_alarm()

    def _note_for_clients(self, task: Task, note: WaitingForExecutor | None) -> None:
        twins = self._interest[task]
        run = with_note(next((twin.run for twin in twins), None), note)
        for operation in twins:
            operation.run = run
            operation.announce()

    # --- the end of the server

    def _draining(self) -> Draining:
        assert self._stops_at is not None
        # It is not known when the next one begins: soon after this one has ended.
        return Draining(max(self._stops_at - trio.current_time(), 0) + _RESTART_SECONDS)

    def _note_if_all_ended(self) -> None:
        if self._stops_at is not None and not self._queue.executing:
            self._all_ended.set()

    def _hand_back(self) -> None:
        self._handed_back = True
        for task in {*self._interest}:
            if task.held is not None and self._is_current(task.held):
                self._lose(task.held)
        for operation in (*self._tasks, *self._unqueued):
            operation.hand_back(self._draining())

    async def _await_clients(self, restored: Iterable[Operation]) -> None:
        await trio.sleep(self._settings.reconnect_seconds)
        for operation in restored:
            # There may be as many as a queue holds, and others want their turn.
            await trio.lowlevel.checkpoint()
            if operation.watchers == 0 and operation.departures == 0:
                self._abandon(operation)

    def _abandon(self, operation: Operation) -> None:
        # The next server sees whether its client comes back.
        if not self._handed_back:
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
