"""The trio face of the queue: operations, leases, and the wait between them."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Collection, Hashable, Iterable, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec
import trio
from google.protobuf.timestamp_pb2 import Timestamp

from stoker.action import LoadedAction, Outcome
from stoker.errors import Cancelled, OperationNotFound, Unavailable
from stoker.protos import remote_execution_pb2 as reapi
from stoker.resources import Share
from stoker.scheduler.matching import Matching, Offer, PropertyKind
from stoker.scheduler.operation import Operation, now, operation_name
from stoker.scheduler.queue import Assignment, Policy, Queue, Stage, Task, merge_key
from stoker.spi import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_ATTEMPTS = 3
"""How often a task is handed out before its loss is told to the client (OPS-14)."""


_Count = Annotated[int, msgspec.Meta(ge=0)]
_Seconds = Annotated[float, msgspec.Meta(ge=0)]


class SchedulerSettings(Settings, frozen=True):
    """``[scheduler]``."""

    max_queued: _Count = 100_000
    """Actions that may wait; more are refused with RESOURCE_EXHAUSTED."""
    ageing_seconds: _Seconds = 600.0
    """After this time an action's turn comes by waiting: of four actions that begin where it
    could, one is the one that waits longest, whatever its priority and whosever it is (SCH-02)."""
    high_priority_mnemonics: tuple[str, ...] = ()
    """Actions with these mnemonics go before others of their instance of the same priority."""
    properties: dict[str, PropertyKind] = msgspec.field(default_factory=dict)
    """``[scheduler.properties]``: how a platform property is held against what executors declare,
    by its name; see `PropertyKind`. Those that are not named are ``one of``, but for what asks for
    processors, memory, a worker or a container."""
    abandoned_after_seconds: _Seconds = 0.5
    """An operation that nobody waits for is cancelled after this time (OPS-08). Long enough for a
    client whose connection broke to come back by WaitExecution, short enough to obey an
    interrupted build; gRPC does not tell the two apart."""
    retention_seconds: _Seconds = 900.0
    """How long an operation that has ended can still be asked for (OPS-13)."""
    max_retained_bytes: _Count = 64 * 1024 * 1024
    """What those may weigh together; the oldest go first."""

    @property
    def matching(self) -> Matching:
        """How actions and executors are matched."""
        return Matching(self.properties)

    @property
    def policy(self) -> Policy:
        """What the queue goes by."""
        return Policy(self.ageing_seconds, frozenset(self.high_priority_mnemonics), self.matching)


class Lease:
    """A task in the hands of an executor's slot."""

    def __init__(self, scheduler: Scheduler, task: Task) -> None:
        self._scheduler = scheduler
        self._task = task
        self._queued_timestamp = min(
            (operation.metadata.queued_timestamp for operation in scheduler._interest[task]),
            key=Timestamp.ToNanoseconds,
        )
        self.scope = trio.CancelScope()
        """Cancelled when no operation wants the task any more."""

    @property
    def action(self) -> LoadedAction:
        return self._task.action

    def started(self, metadata: reapi.ExecutedActionMetadata) -> None:
        """The action's process is about to start."""
        self._scheduler._tell(self._task, Stage.EXECUTING, metadata)

    def complete(self, outcome: Outcome) -> None:
        """The task has ended; everybody who waits is told. Later calls change nothing."""
        self._scheduler._complete(self._task, outcome)

    @property
    def queued_timestamp(self) -> Timestamp:
        """When the first of its operations was accepted."""
        return self._queued_timestamp


class _Seat:
    """A slot that waits for a task. At most one task comes, once."""

    __slots__ = ("_taken", "task")

    def __init__(self) -> None:
        self.task: Task | None = None
        self._taken: trio.Event | None = None

    def put(self, task: Task) -> None:
        self.task = task
        if self._taken is not None:
            self._taken.set()

    async def wait(self) -> Task:
        """Wait for the task, which stays here if that is cancelled."""
        # At once where it can be: a turn of the loop would begin what is urgent behind others.
        if self.task is None:
            self._taken = trio.Event()
            await self._taken.wait()
            assert self.task is not None
        return self.task


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
        self, executors: Mapping[str, Offer], settings: SchedulerSettings, nursery: trio.Nursery
    ) -> None:
        self._queue = Queue(executors, max_queued=settings.max_queued, policy=settings.policy)
        self._settings = settings
        self._nursery = nursery
        self._operations: OrderedDict[str, Operation] = OrderedDict()
        self._ended: deque[_Ended] = deque()
        self._retained_bytes = 0
        self._ends: OrderedDict[Hashable, int] = OrderedDict()
        self._end_count = 0
        self._interest: dict[Task, set[Operation]] = {}
        self._tasks: dict[Operation, Task] = {}
        self._leases: dict[Task, Lease] = {}
        self._idle: dict[str, deque[_Seat]] = {e: deque() for e in executors}

    # --- for the frontend

    def submit(
        self, action: LoadedAction, *, priority: int, executors: Collection[str]
    ) -> Operation:
        """Accept `action`, to run on one of `executors`, or to share a twin's run.

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
        lease = self._leases[task] = Lease(self, task)
        try:
            yield lease
        finally:
            del self._leases[task]
            self._give_back(task)

    async def _next_task(self, executor: str) -> Task:
        seat = _Seat()
        self._idle[executor].append(seat)
        self._hand_over(self._queue.offer(executor, now=trio.current_time()))
        try:
            return await seat.wait()
        except trio.Cancelled:
            self._stop_waiting(executor, seat)
            raise

    def _stop_waiting(self, executor: str, seat: _Seat) -> None:
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
            # Facts of an earlier moment are over.
            operation.metadata.ClearField("auxiliary_metadata")
            operation.metadata.MergeFrom(metadata)
            operation.metadata.queued_timestamp.CopyFrom(queued)
            operation.announce()

    def _complete(self, task: Task, outcome: Outcome) -> None:
        assignments = self._queue.complete(task, now=trio.current_time())
        self._note_end(task)
        for operation in tuple(self._interest.get(task, ())):
            self._end(operation, outcome)
        self._interest.pop(task, None)
        self._hand_over(assignments)

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
            self._complete(task, Outcome(error=lost))
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
    executors: Mapping[str, Offer], settings: SchedulerSettings
) -> AsyncIterator[Scheduler]:
    """A scheduler for executors of these names, and what they offer."""
    async with trio.open_nursery() as nursery:
        try:
            yield Scheduler(executors, settings, nursery)
        finally:
            nursery.cancel_scope.cancel()
