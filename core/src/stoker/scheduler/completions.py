"""How tasks end."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import TYPE_CHECKING

import trio

from stoker.action import LoadedAction, Outcome
from stoker.scheduler.task import Assignment, Stage, Task, merge_key

if TYPE_CHECKING:
    from stoker.scheduler.entrance import Entrance
    from stoker.scheduler.floor import Floor
    from stoker.scheduler.operations import Operations
    from stoker.scheduler.queue import Queue
    from stoker.scheduler.shutdown import Shutdown

_REMEMBERED = 4096
"""How many runs that have ended are remembered: more than end while the action cache is asked."""


class Completions:
    """Ends tasks, lets in what waited for that, and remembers for a while what has run."""

    def __init__(
        self,
        queue: Queue,
        operations: Operations,
        floor: Floor,
        entrance: Entrance,
        shutdown: Shutdown,
    ) -> None:
        self._queue = queue
        self._operations = operations
        self._floor = floor
        self._entrance = entrance
        self._shutdown = shutdown
        self._numbers: OrderedDict[Hashable, int] = OrderedDict()
        self.count = 0
        """How many runs have ended so far."""

    def since(self, action: LoadedAction, count: int) -> bool:
        """Whether a run of `action` has ended since `count` was that."""
        return self._numbers.get(merge_key(action), -1) >= count

    def complete(self, task: Task, outcome: Outcome) -> None:
        """`task` has ended; everybody who waits is told."""
        assignments = self._leave_queue(task)
        self._remember(task)
        self._operations.complete(task, outcome)
        self._floor.hand_over(assignments)
        self._entrance.let_in()
        self._shutdown.note_if_all_ended()

    def drop(self, task: Task) -> None:
        """Nobody wants `task`: it is taken out of the queue, and counts no more where it runs."""
        self._floor.hand_over(self._leave_queue(task))
        self._operations.drop(task)
        self._shutdown.note_if_all_ended()
        self._entrance.let_in()

    def _leave_queue(self, task: Task) -> Iterable[Assignment]:
        if task.stage is not Stage.COMPLETED:
            self._entrance.left(task.action)
        return self._queue.complete(task, now=trio.current_time())

    def _remember(self, task: Task) -> None:
        # Nobody looks for others, which would keep their actions here.
        if task.action.cacheable:
            self._numbers[task.merge_key] = self.count
            self._numbers.move_to_end(task.merge_key)
        self.count += 1
        while len(self._numbers) > _REMEMBERED:
            self._numbers.popitem(last=False)
