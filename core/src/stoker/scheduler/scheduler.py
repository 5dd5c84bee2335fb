"""The trio face of the queue: operations, leases, and the wait between them."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Collection, Hashable, Iterable, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import trio
from google.protobuf.timestamp_pb2 import Timestamp

from stoker.action import (
    UNKNOWN_ANSWER,
    CacheAnswer,
    CacheVerdict,
    LoadedAction,
    Outcome,
    RunRecord,
)
from stoker.errors import Cancelled, OperationNotFound, Unavailable
from stoker.protos import remote_execution_pb2 as reapi
from stoker.resources import Share
from stoker.scheduler.course import Course
from stoker.scheduler.leasing import Lease, Seat
from stoker.scheduler.operation import Operation, now, operation_name
from stoker.scheduler.queue import Assignment, Queue, Stage, Task, merge_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stoker.scheduler.matching import Offer
    from stoker.scheduler.settings import SchedulerSettings
    from stoker.scheduler.waiting import Outlook

Note = Callable[[RunRecord], None]
"""Takes what is told of a run that has ended. It is called for each, and must take no time."""


MAX_ATTEMPTS = 3
"""How often a task is handed out before its loss is told to the client (OPS-14)."""


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
        note: Note | None = None,
    ) -> None:
        self._queue = Queue(executors, max_queued=settings.max_queued, policy=settings.policy)
        self._settings = settings
        self._nursery = nursery
        self._note = note
        self._courses: dict[Task, Course] = {}
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
        cache: CacheAnswer = UNKNOWN_ANSWER,
    ) -> Operation:
        """Accept `action`, to run on one of `executors`, or to share a twin's run.

        `cache` is what the action cache said of it, for the records.

        Raises InvalidRequest, FailedPrecondition where none matches, Overloaded where the queue
        is full: see `Queue.add`.
        """
        task, assignments = self._queue.add(action, priority, executors, now=trio.current_time())
        operation = self._new_operation(action, Stage.QUEUED)
        operation.metadata.queued_timestamp.CopyFrom(now())
        self._tasks[operation] = task
        twins = self._interest.setdefault(task, set())
        if twin := next(iter(twins), None):
            operation.stage = twin.stage
            operation.metadata.CopyFrom(twin.metadata)
        twins.add(operation)
        self._note_operation(task, operation, cache)
        self._hand_over(assignments)
        return operation

    def join(self, action: LoadedAction, *, priority: int) -> Operation | None:
        """An operation that shares the run of an identical action in flight, if there is one."""
        if not self._queue.in_flight(action):
            return None
        return self.submit(action, priority=priority, executors=())

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
        operation = self._new_operation(action, Stage.QUEUED)
        self._end(operation, outcome)
        if self._note is not None:
            ended_ns = time.time_ns()
            answer = CacheAnswer(CacheVerdict.HIT)
            names = (operation.name,)
            self._note(RunRecord(action, outcome, names, answer, "", (), ended_ns, ended_ns))
        return operation

    def run_of(self, operation: Operation) -> RunRecord | None:
        """What is known of the run that `operation` waits for; None once it has ended."""
        task = self._tasks.get(operation)
        return self._courses[task].record(task, None) if task else None

    def outlook(self, operation: Operation) -> Outlook | None:
        """Why `operation` waits for an executor now; None where it does not."""
        task = self._tasks.get(operation)
        return self._queue.outlook(task) if task and task.stage is Stage.QUEUED else None

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
        task = self._tasks[operation]
        self._end(operation, Outcome(error=Cancelled(f"operation {operation.name} was cancelled")))
        if not self._interest[task]:
            self._drop(task)

    @contextmanager
    def watching(self, operation: Operation) -> Iterator[None]:
        """Somebody waits for `operation`. Once nobody does, it is abandoned after a while."""
        operation.watchers += 1
        try:
            yield
        finally:
            operation.watchers -= 1
            if operation.watchers == 0 and operation.stage is not Stage.COMPLETED:
                operation.departures += 1
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
        try:
            yield lease
        finally:
            del self._leases[task]
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

    def _new_operation(self, action: LoadedAction, stage: Stage) -> Operation:
        self._forget_expired()
        operation = Operation(
            name=operation_name(action.namespace),
            namespace=action.namespace,
            action_digest=action.digest,
            stage=stage,
        )
        self._operations[operation.name] = operation
        return operation

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
        assignments = self._queue.complete(task, now=trio.current_time())
        self._note_end(task)
        self._note_run(task, outcome)
        for operation in tuple(self._interest.get(task, ())):
            self._end(operation, outcome)
        self._interest.pop(task, None)
        self._hand_over(assignments)

    def _queued_timestamp(self, task: Task) -> Timestamp:
        return min(
            (operation.metadata.queued_timestamp for operation in self._interest[task]),
            key=Timestamp.ToNanoseconds,
        )

    def _note_operation(self, task: Task, operation: Operation, cache: CacheAnswer) -> None:
        course = self._courses.get(task)
        if course is None:
            wait = self._queue.outlook(task).sentence() if task.stage is Stage.QUEUED else ""
            queued_ns = operation.metadata.queued_timestamp.ToNanoseconds()
            course = self._courses[task] = Course(cache, queued_ns, wait)
        course.operations.append(operation.name)

    def _note_run(self, task: Task, outcome: Outcome) -> None:
        course = self._courses.pop(task, None)
        if course is not None and self._note is not None:
            self._note(course.record(task, outcome))

    def _note_end(self, task: Task) -> None:
        self._ends[task.merge_key] = self._end_count
        self._ends.move_to_end(task.merge_key)
        self._end_count += 1
        while len(self._ends) > _REMEMBERED_ENDS:
            self._ends.popitem(last=False)

    def _end(self, operation: Operation, outcome: Outcome) -> None:
        if task := self._tasks.pop(operation, None):
            self._interest[task].discard(operation)
        operation.stage, operation.outcome = Stage.COMPLETED, outcome
        weight = _OPERATION_BYTES + (outcome.result.ByteSize() if outcome.result else 0)
        self._ended.append(_Ended(trio.current_time(), operation.name, weight))
        self._retained_bytes += weight
        operation.announce()

    def _drop(self, task: Task) -> None:
        """Nobody wants `task`: it is taken out of the queue, or stopped where it runs."""
        self._hand_over(self._queue.complete(task, now=trio.current_time()))
        self._note_run(task, Outcome(error=Cancelled("nobody wanted it any longer")))
        if lease := self._leases.get(task):
            lease.scope.cancel()
        else:
            self._interest.pop(task, None)

    def _give_back(self, task: Task) -> None:
        """A slot lets go of `task`."""
        if task.stage is not Stage.COMPLETED and task.attempts < MAX_ATTEMPTS:
            self._tell(task, Stage.QUEUED, reapi.ExecutedActionMetadata())
            self._hand_over(self._queue.requeue(task, now=trio.current_time()))
            return
        if task.stage is not Stage.COMPLETED:
            lost = Unavailable(
                f"the action was lost {task.attempts} times by its executors: "
                f"{', '.join(task.tried)}"
            )
            self.complete(task, Outcome(error=lost))
        self._interest.pop(task, None)
        self._hand_over(self._queue.release(task, now=trio.current_time()))

    async def _abandon_later(self, operation: Operation, departure: int) -> None:
        await trio.sleep(self._settings.abandoned_after_seconds)
        if operation.watchers == 0 and operation.departures == departure:
            self.cancel(operation)

    def _forget_expired(self) -> None:
        oldest = trio.current_time() - self._settings.retention_seconds
        while self._ended and (
            self._ended[0].time < oldest or self._retained_bytes > self._settings.max_retained_bytes
        ):
            _, name, weight = self._ended.popleft()
            self._retained_bytes -= weight
            self._operations.pop(name, None)


@asynccontextmanager
async def open_scheduler(
    executors: Mapping[str, Offer], settings: SchedulerSettings, note: Note | None = None
) -> AsyncIterator[Scheduler]:
    """A scheduler for executors of these names, and what they offer; `note` is told of each run."""
    async with trio.open_nursery() as nursery:
        try:
            yield Scheduler(executors, settings, nursery, note)
        finally:
            nursery.cancel_scope.cancel()
