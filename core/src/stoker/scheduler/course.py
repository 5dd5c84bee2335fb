"""What is noted of each task on its way, for the records and for those who ask."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from stoker.action import CacheAnswer, CacheVerdict, LoadedAction, Outcome, RunRecord, Sharer
from stoker.scheduler.operation import Operation
from stoker.scheduler.queue import Queue, Stage, Task

Note = Callable[[RunRecord], None]
"""Takes what is told of a run that has ended. It is called for each, and must take no time."""


MAX_SHARERS = 1000
"""How many operations of a run are remembered: the first. Any number may come and go."""


@dataclass(slots=True)
class _Course:
    """How a task came to be run. `Task.tried` says where."""

    cache: CacheAnswer
    queued_ns: int
    wait: str
    sharers: list[Sharer] = field(default_factory=list)


class Courses:
    """The tasks on their way. `note` is told of each as it ends."""

    def __init__(self, queue: Queue, note: Note | None) -> None:
        self._queue = queue
        self._note = note
        self._courses: dict[Task, _Course] = {}

    def join(self, task: Task, operation: Operation) -> None:
        """`task` runs for `operation`, too. The first of its operations tells how it came to be."""
        course = self._courses.get(task)
        if course is None:
            wait = self._queue.outlook(task).sentence() if task.stage is Stage.QUEUED else ""
            course = _Course(operation.cache, operation.queued_nanoseconds, wait)
            self._courses[task] = course
        if len(course.sharers) < MAX_SHARERS:
            course.sharers.append(Sharer(operation.name, operation.principal))

    def end(self, task: Task, outcome: Outcome) -> None:
        """`task` has ended. Later calls change nothing."""
        course = self._courses.pop(task, None)
        if course is not None and self._note is not None:
            self._note(_record(task, course, outcome))

    def answered(self, action: LoadedAction, operation: Operation, outcome: Outcome) -> None:
        """`operation` has its outcome from the action cache."""
        if self._note is not None:
            now_ns = time.time_ns()
            sharers = (Sharer(operation.name, operation.principal),)
            self._note(RunRecord(action, outcome, sharers, _HIT, "", (), now_ns, now_ns))

    def record(self, task: Task) -> RunRecord:
        """What is known of `task`, which goes on."""
        return _record(task, self._courses[task], None)


_HIT = CacheAnswer(CacheVerdict.HIT)


def _record(task: Task, course: _Course, outcome: Outcome | None) -> RunRecord:
    return RunRecord(
        task.action,
        outcome,
        tuple(course.sharers),
        course.cache,
        course.wait,
        tuple(task.tried),
        course.queued_ns,
        time.time_ns() if outcome else 0,
    )
