"""The trio face of the queue: operations, leases, and the wait between them."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Collection, Hashable, Iterable, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import trio
from google.protobuf.timestamp_pb2 import Timestamp

from stoker.action import LoadedAction, Outcome
from stoker.errors import Cancelled, OperationNotFound, Overloaded, StokerError, Unavailable
from stoker.protos import remote_execution_pb2 as reapi
from stoker.resources import Share
from stoker.scheduler.journal import Journal
from stoker.scheduler.journal_rows import accepted, restored_operation, seconds_since
from stoker.scheduler.leasing import Lease, Seat
from stoker.scheduler.losses import key_of
from stoker.scheduler.operation import Operation, new_operation
from stoker.scheduler.queue import Assignment, Queue, Stage, Task, merge_key
from stoker.scheduler.suspects import Suspects, Waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stoker.scheduler.journal_rows import Kept
    from stoker.scheduler.matching import Offer
    from stoker.scheduler.settings import SchedulerSettings

_OPERATION_BYTES = 2048
"""About what an operation weighs beside its result."""

_REMEMBERED_ENDS = 4096
"""How many runs that have ended are remembered: more than end while the action cache is asked."""


class _Ended(NamedTuple):
    time: float
    name: str
    weight: int


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
    ) -> None:
        self._queue = Queue(executors, max_queued=settings.max_queued, policy=settings.policy)
        self._settings = settings
        self._nursery = nursery
        self._journal = journal
        self._suspects = Suspects(journal.losses)
        self._stopping = False
        self._operations: OrderedDict[str, Operation] = OrderedDict()
        self._ended: deque[_Ended] = deque()
        self._retained_bytes = 0
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
        skip_cache_lookup: bool = False,
    ) -> Operation:
        """Accept `action`, to run on one of `executors`, or to share a twin's run.

        `skip_cache_lookup` is whether it has to run whatever the action cache has, should that be
        for a later server to do. Raises Quarantined for an action that was lost too often
        (SCH-10), InvalidRequest, FailedPrecondition where none matches, Overloaded where the queue
        is full: see `Queue.add`.
        """
        self._journal.losses.check(action)
        operation = new_operation(action)
        self._enter(Waiting(operation, action, priority, executors), trio.current_time())
        self._know(operation)
        self._journal.accepted(
            operation, accepted(operation, action, priority, skip_cache_lookup=skip_cache_lookup)
        )
        return operation

    def join(
        self, action: LoadedAction, *, priority: int, skip_cache_lookup: bool = False
    ) -> Operation | None:
        """An operation that shares the run of an identical action in flight, if there is one."""
        if not self._queue.in_flight(action):
            return None
        return self.submit(
            action, priority=priority, executors=(), skip_cache_lookup=skip_cache_lookup
        )

    async def wait_recorded(self, operation: Operation) -> None:
        """Wait until `operation` outlives the server, as far as it ever will (SCH-07).

        Nobody should hear its name before. Calls may overlap; cancellation leaves nothing behind.
        """
        await self._journal.wait_recorded(operation)

    @property
    def end_count(self) -> int:
        """How many runs have ended so far."""
        return self._end_count

    def ended_since(self, action: LoadedAction, count: int) -> bool:
        """Whether a run of `action` has ended since `end_count` was `count`.

        Then the action cache may know now what it did not know when it was asked.
        """
        return self._ends.get(merge_key(action), -1) >= count

    def submit_completed(self, action: LoadedAction, outcome: Outcome) -> Operation:
        """An operation that has its outcome already, from the action cache (EXE-18)."""
        operation = new_operation(action)
        self._know(operation)
        self._end(operation, outcome)
        return operation

    def find(self, name: str) -> Operation:
        """The operation of this name. Raises OperationNotFound."""
        self._forget_expired()
        try:
            return self._operations[name]
        except KeyError:
            raise OperationNotFound(name) from None

    def operations(self, namespace: str) -> list[Operation]:
        """All operations of one instance that are known, oldest first."""
        self._forget_expired()
        return [op for op in self._operations.values() if op.namespace == namespace]

    def cancel(self, operation: Operation) -> None:
        """End `operation` as cancelled; its run goes on if other operations share it (OPS-18)."""
        if operation.stage is Stage.COMPLETED:
            return
        task = self._tasks.get(operation)
        self._end(operation, Outcome(error=Cancelled(f"operation {operation.name} was cancelled")))
        if task and not self._interest[task]:
            self._drop(task)

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

    def restore(self, kept: Iterable[Kept]) -> list[tuple[Kept, Operation]]:
        """Know the operations that a server before this one accepted, under their names.

        Returns those that have not ended. Each of them has to be told to `resume` or to `end`.
        """
        restored = [(each, restored_operation(each)) for each in kept]
        for _, operation in restored:
            self._operations[operation.name] = operation
        ended = [(each.ended, operation) for each, operation in restored if each.ended]
        for end, operation in sorted(ended, key=lambda each: each[0].nanoseconds):
            self._retain(operation, end.outcome, seconds_since(end.nanoseconds))
        unfinished = [(each, operation) for each, operation in restored if not each.ended]
        self._nursery.start_soon(self._await_clients, [operation for _, operation in unfinished])
        return unfinished

    def resume(
        self,
        operation: Operation,
        action: LoadedAction,
        *,
        priority: int,
        executors: Collection[str],
    ) -> None:
        """Run what a server before this one accepted. What forbids that ends the operation."""
        if operation.outcome:
            return
        waiting = Waiting(operation, action, priority, executors)
        age = seconds_since(operation.metadata.queued_timestamp.ToNanoseconds())
        try:
            self._journal.losses.check(action)
            self._enter(waiting, trio.current_time() - age)
        except Overloaded:
            self._suspects.hold(waiting)
        except StokerError as error:
            self._end(operation, Outcome(error=error))

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
        task = await self._next_task(executor)
        while task.stage is Stage.COMPLETED:  # dropped on its way here
            self._give_back(task)
            task = await self._next_task(executor)
        lease = self._leases[task] = Lease(self, task, self._queued_timestamp(task))
        began = time.time_ns()
        try:
            with self._journal.in_hand(task.action, executor):
                yield lease
        finally:
            del self._leases[task]
            self._note_loss(task, executor, began)
            self._give_back(task)

    def started(self, task: Task, metadata: reapi.ExecutedActionMetadata) -> None:
        """The process of `task` is about to start."""
        self._tell(task, Stage.EXECUTING, metadata)

    async def _next_task(self, executor: str) -> Task:
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
        if seat.task is None:
            self._idle[executor].remove(seat)
            self._queue.withdraw(executor)
        else:
            self._give_back(seat.task)

    # --- state, changed between awaits only

    def _know(self, operation: Operation) -> None:
        self._forget_expired()
        self._operations[operation.name] = operation

    def _enter(self, waiting: Waiting, now: float) -> None:
        """Queue an operation, or have it wait for others that are under suspicion as it is."""
        operation, action, priority, executors = waiting
        if not self._suspects.may_enter(action):
            self._suspects.hold(waiting)
            return
        task, assignments = self._queue.add(action, priority, executors, now=now)
        self._tasks[operation] = task
        if task not in self._interest:
            self._suspects.entered(action)
        twins = self._interest.setdefault(task, set())
        if twin := next(iter(twins), None):
            operation.stage = twin.stage
            operation.metadata.CopyFrom(twin.metadata)
        twins.add(operation)
        self._hand_over(assignments)

    def _let_in(self) -> None:
        """Queue those that waited for a suspect that has ended."""
        while waiting := self._suspects.next_to_enter():
            operation, action, priority, executors = waiting
            self.resume(operation, action, priority=priority, executors=executors)
            if operation not in self._tasks and not operation.outcome:
                break

    def _hand_over(self, assignments: Iterable[Assignment]) -> None:
        for task, executor in assignments:
            self._idle[executor].popleft().put(task)

    def _tell(self, task: Task, stage: Stage, metadata: reapi.ExecutedActionMetadata) -> None:
        for operation in self._interest[task]:
            queued = operation.metadata.queued_timestamp
            operation.stage = stage
            operation.metadata.MergeFrom(metadata)
            operation.metadata.queued_timestamp.CopyFrom(queued)
            operation.announce()

    def complete(self, task: Task, outcome: Outcome) -> None:
        """`task` has ended; everybody who waits is told. Later calls change nothing."""
        self._journal.survived(task.action)
        self._complete(task, outcome)

    def _complete(self, task: Task, outcome: Outcome) -> None:
        assignments = self._leave_queue(task)
        self._note_end(task)
        for operation in tuple(self._interest.get(task, ())):
            self._end(operation, outcome)
        self._interest.pop(task, None)
        self._hand_over(assignments)
        self._let_in()

    def _leave_queue(self, task: Task) -> list[Assignment]:
        if task.stage is not Stage.COMPLETED:
            self._suspects.left(task.action)
        return self._queue.complete(task, now=trio.current_time())

    def _queued_timestamp(self, task: Task) -> Timestamp:
        return min(
            (operation.metadata.queued_timestamp for operation in self._interest[task]),
            key=Timestamp.ToNanoseconds,
        )

    def _note_end(self, task: Task) -> None:
        self._ends[task.merge_key] = self._end_count
        self._ends.move_to_end(task.merge_key)
        self._end_count += 1
        while len(self._ends) > _REMEMBERED_ENDS:
            self._ends.popitem(last=False)

    def _end(self, operation: Operation, outcome: Outcome) -> None:
        if task := self._tasks.pop(operation, None):
            self._interest[task].discard(operation)
        self._retain(operation, outcome, 0)
        self._journal.ended(operation)
        operation.announce()

    def _retain(self, operation: Operation, outcome: Outcome, seconds_ago: float) -> None:
        operation.stage, operation.outcome = Stage.COMPLETED, outcome
        weight = _OPERATION_BYTES + (outcome.result.ByteSize() if outcome.result else 0)
        self._ended.append(_Ended(trio.current_time() - seconds_ago, operation.name, weight))
        self._retained_bytes += weight

    def _drop(self, task: Task) -> None:
        """Nobody wants `task`: it is taken out of the queue, or stopped where it runs."""
        self._hand_over(self._leave_queue(task))
        if lease := self._leases.get(task):
            lease.scope.cancel()
        else:
            self._interest.pop(task, None)
        self._let_in()

    def _note_loss(self, task: Task, executor: str, began_nanoseconds: int) -> None:
        """A slot lets go of `task`, which it was handed at this time of day."""
        if task.stage is not Stage.COMPLETED and not self._stopping:
            self._journal.lost(task.action, executor, began_nanoseconds)

    def _give_back(self, task: Task) -> None:
        """A slot lets go of `task`."""
        losses, key = self._journal.losses, key_of(task.action)
        if task.stage is not Stage.COMPLETED and not losses.spent(key):
            self._tell(task, Stage.QUEUED, reapi.ExecutedActionMetadata())
            self._hand_over(self._queue.requeue(task, now=trio.current_time()))
            return
        if task.stage is not Stage.COMPLETED:
            lost = losses.executors(key)
            error = Unavailable(
                f"the action was lost {len(lost)} times by its executors: {', '.join(lost)}"
            )
            self._complete(task, Outcome(error=error))
        self._interest.pop(task, None)
        self._hand_over(self._queue.release(task, now=trio.current_time()))

    async def _abandon_later(self, operation: Operation, departure: int) -> None:
        await trio.sleep(self._settings.abandoned_after_seconds)
        if operation.watchers == 0 and operation.departures == departure:
            self.cancel(operation)

    async def _await_clients(self, restored: Iterable[Operation]) -> None:
        await trio.sleep(self._settings.reconnect_seconds)
        for operation in restored:
            if operation.watchers == 0 and operation.departures == 0:
                self.cancel(operation)

    def _forget_expired(self) -> None:
        oldest = trio.current_time() - self._settings.retention_seconds
        while self._ended and (
            self._ended[0].time < oldest or self._retained_bytes > self._settings.max_retained_bytes
        ):
            _, name, weight = self._ended.popleft()
            self._retained_bytes -= weight
            self._operations.pop(name, None)
            self._journal.forgotten(name)


@asynccontextmanager
async def open_scheduler(
    executors: Mapping[str, Offer], settings: SchedulerSettings, journal: Journal | None = None
) -> AsyncIterator[Scheduler]:
    """A scheduler for executors of these names, and what they offer.

    It forgets all when it ends, without a journal that is open.
    """
    async with trio.open_nursery() as nursery:
        try:
            yield Scheduler(executors, settings, nursery, journal or Journal(settings.bounds))
        finally:
            nursery.cancel_scope.cancel()
