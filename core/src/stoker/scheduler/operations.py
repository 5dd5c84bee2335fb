"""The operations in flight, and the tasks that run for them."""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING

import trio

from stoker.action import CacheAnswer, Inlined, LoadedAction, Outcome, RunRecord
from stoker.errors import Cancelled
from stoker.protos import remote_execution_pb2 as reapi
from stoker.protos.scheduling_pb2 import WaitingForExecutor
from stoker.scheduler.journal_rows import Request, seconds_since
from stoker.scheduler.operation import Operation, timestamp
from stoker.scheduler.task import Stage, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.timestamp_pb2 import Timestamp

    from stoker.log_streams.names import StreamNames
    from stoker.scheduler.admission import Limits
    from stoker.scheduler.course import Courses
    from stoker.scheduler.journal import Journal
    from stoker.scheduler.journal_rows import Kept
    from stoker.scheduler.records import Records


class Operations:
    """Who waits for what.

    Whatever becomes of an operation or a task is told here: to those who wait for it, to the
    records and the journal, and to what counts. Nothing is queued or handed out here.
    """

    def __init__(
        self, records: Records, limits: Limits, journal: Journal, courses: Courses
    ) -> None:
        self._records = records
        self._limits = limits
        self._journal = journal
        self._courses = courses
        self._tasks: dict[Operation, Task | None] = {}
        self._twins: dict[Task, set[Operation]] = {}

    # --- one operation

    def accept(
        self, action: LoadedAction, request: Request, inlined: Inlined, cache: CacheAnswer
    ) -> Operation:
        """A new operation for `action`, for which no task runs yet."""
        now = trio.current_time()
        self._records.drop_expired(now)
        operation = self._records.add(action, inlined)
        operation.queued_nanoseconds, operation.cache = time_ns(), cache
        self._take_in(operation, now)
        self._journal.accepted(operation, request)
        return operation

    def answered(self, action: LoadedAction, outcome: Outcome, inlined: Inlined) -> Operation:
        """A new operation that has its outcome already, from the action cache (EXE-18)."""
        now = trio.current_time()
        self._records.drop_expired(now)
        operation = self._records.add(action, inlined)
        operation.stage, operation.outcome = Stage.COMPLETED, outcome
        self._records.retain(operation, now)
        self._courses.answered(action, operation, outcome)
        return operation

    def restore(self, kept: Sequence[Kept]) -> list[Kept]:
        """Know the operations of a server before this one. Returns those that have not ended."""
        now = trio.current_time()
        unfinished = [each for each in kept if not each.operation.outcome]
        for each in kept:
            self._records.restore(each.operation)
        for each in unfinished:
            self._take_in(each.operation, now)
        for each in sorted(kept, key=lambda each: each.ended_nanoseconds):
            if each.operation.outcome:
                self._records.retain(each.operation, now - seconds_since(each.ended_nanoseconds))
        return unfinished

    def count_waiting(self, operation: Operation) -> None:
        """`operation` counts among those that wait for an executor, though no task runs for it."""
        self._count_waiting(operation, waits=True)

    def end(self, operation: Operation, outcome: Outcome) -> None:
        """`operation`, which is in flight, has this outcome. Its task, if any, goes on."""
        if task := self._tasks.pop(operation, None):
            self._twins[task].discard(operation)
        operation.stage, operation.outcome = Stage.COMPLETED, outcome
        self._count_waiting(operation, waits=False)
        self._limits.in_flight.leave(operation.principal, trio.current_time())
        self._journal.ended(operation)
        self._records.retain(operation, trio.current_time())
        operation.announce()

    @property
    def in_flight(self) -> list[Operation]:
        """All that have not ended."""
        return [*self._tasks]

    def task_of(self, operation: Operation) -> Task | None:
        """The task that runs for `operation`, if there is one."""
        return self._tasks.get(operation)

    def run_of(self, operation: Operation) -> RunRecord | None:
        """What is known of that task."""
        task = self._tasks.get(operation)
        return self._courses.record(task) if task else None

    def _take_in(self, operation: Operation, now: float) -> None:
        """`operation` is new, and counts from now on."""
        self._tasks[operation] = None
        self._limits.in_flight.enter(operation.principal, now)

    def _count_waiting(self, operation: Operation, *, waits: bool) -> None:
        """Whether `operation` counts among those that wait for an executor."""
        if operation.waits == waits:
            return
        operation.waits = waits
        if waits:
            self._limits.queued.enter(operation.principal, trio.current_time())
        else:
            self._limits.queued.leave(operation.principal, trio.current_time())

    # --- all operations of a task

    @property
    def tasks(self) -> list[Task]:
        """All tasks that run for operations, and those that are dropped and not let go of yet."""
        return [*self._twins]

    def join(self, operation: Operation, task: Task) -> bool:
        """`task` runs for `operation` as for its twins. Returns whether it has none."""
        self._tasks[operation] = task
        twins = self._twins.setdefault(task, set())
        twin = next(iter(twins), None)
        if twin is not None:
            operation.stage, operation.run = twin.stage, twin.run
            operation.streams = twin.streams
        twins.add(operation)
        self._courses.join(task, operation)
        self._count_waiting(operation, waits=task.stage is Stage.QUEUED)
        return twin is None

    def handed_over(self, task: Task) -> None:
        """An executor has `task`."""
        for operation in self._twins.get(task, ()):
            self._count_waiting(operation, waits=False)

    def queued_again(self, task: Task) -> None:
        """`task` was lost by its executor, and waits for another."""
        self.tell(task, Stage.QUEUED, reapi.ExecutedActionMetadata())
        for operation in self._twins[task]:
            self._count_waiting(operation, waits=True)

    def tell(
        self,
        task: Task,
        stage: Stage,
        metadata: reapi.ExecutedActionMetadata,
        streams: StreamNames | None = None,
    ) -> None:
        """Tell whoever waits for `task` where it stands."""
        twins = self._twins[task]
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

    def explain_wait(self, task: Task, note: WaitingForExecutor | None) -> None:
        """Tell whoever waits for `task` that there is no executor for it; None: there is again."""
        twins = self._twins[task]
        run = _with_note(next((twin.run for twin in twins), None), note)
        for operation in twins:
            operation.run = run
            operation.announce()

    def complete(self, task: Task, outcome: Outcome) -> None:
        """`task` has ended, and all operations that it ran for with it."""
        self._courses.end(task, outcome)
        for operation in tuple(self._twins.get(task, ())):
            self.end(operation, outcome)
        self._twins.pop(task, None)

    def drop(self, task: Task) -> None:
        """`task`, which nobody wants, has ended: the records are told why. To be forgotten."""
        self._courses.end(task, Outcome(error=Cancelled("nobody wanted it any longer")))

    def forget(self, task: Task) -> None:
        """No executor has anything left of `task`, which has ended."""
        self._twins.pop(task, None)

    def is_wanted(self, task: Task) -> bool:
        """Whether `task` runs for anybody."""
        return bool(self._twins[task])

    def any_of(self, task: Task) -> Operation | None:
        """One of those that `task` runs for."""
        return next(iter(self._twins[task]), None)

    def queued_timestamp(self, task: Task) -> Timestamp:
        """When the first of those that `task` runs for was accepted."""
        return timestamp(min(operation.queued_nanoseconds for operation in self._twins[task]))


def _with_note(
    metadata: reapi.ExecutedActionMetadata | None, note: WaitingForExecutor | None
) -> reapi.ExecutedActionMetadata:
    """A copy of `metadata` with `note` in place of any before it."""
    kept = reapi.ExecutedActionMetadata()
    if metadata is not None:
        kept.CopyFrom(metadata)
    others = [a for a in kept.auxiliary_metadata if not a.Is(WaitingForExecutor.DESCRIPTOR)]
    del kept.auxiliary_metadata[:]
    kept.auxiliary_metadata.extend(others)
    if note is not None:
        kept.auxiliary_metadata.add().Pack(note)
    return kept
