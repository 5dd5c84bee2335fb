"""What is noted of a task on its way, for the records and for those who ask."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from stoker.action import CacheAnswer, Outcome, RunRecord
from stoker.scheduler.task import Task


@dataclass(slots=True)
class Course:
    """How a task came to be run. `Task.tried` says where."""

    cache: CacheAnswer
    queued_ns: int
    wait: str
    operations: list[str] = field(default_factory=list)

    def record(self, task: Task, outcome: Outcome | None) -> RunRecord:
        """What is known of `task`, which ends now with `outcome`, or goes on where that is None."""
        return RunRecord(
            task.action,
            outcome,
            tuple(self.operations),
            self.cache,
            self.wait,
            tuple(task.tried),
            self.queued_ns,
            time.time_ns() if outcome else 0,
        )
