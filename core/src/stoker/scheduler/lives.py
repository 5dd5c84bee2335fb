"""How long executors may keep what they were handed. Pure."""

from __future__ import annotations

import heapq
import math

from stoker.scheduler.task import Assignment, Task

_FEW_STALE = 64


class Lives:
    """The ends of assignments that have one. Those that have none cost nothing."""

    def __init__(self) -> None:
        self._ends: dict[Task, tuple[float, Assignment]] = {}
        self._entries: list[tuple[float, int, Task]] = []
        self._renewals = 0

    def renew(self, assignment: Assignment, until: float) -> None:
        """`assignment`, the only one of its task that counts, lives until then."""
        self._ends[assignment.task] = (until, assignment)
        # An earlier entry is stale, and passed over once it comes to the front.
        if len(self._entries) > 2 * len(self._ends) + _FEW_STALE:
            self._entries = [(end, i, t) for i, (t, (end, _)) in enumerate(self._ends.items())]
            heapq.heapify(self._entries)
            self._renewals = len(self._entries)
        else:
            self._renewals += 1
            heapq.heappush(self._entries, (until, self._renewals, assignment.task))

    def forget(self, task: Task) -> None:
        """Nobody has `task`, or it has ended."""
        if self._ends:
            self._ends.pop(task, None)

    @property
    def next_expiry(self) -> float:
        """When the next life is over, at the earliest."""
        return self._entries[0][0] if self._entries else math.inf

    def expired(self, now: float) -> list[Assignment]:
        """Those whose life is over, which is forgotten."""
        found = []
        while self._entries and self._entries[0][0] <= now:
            end, _, task = heapq.heappop(self._entries)
            if task in self._ends and self._ends[task][0] == end:
                found.append(self._ends.pop(task)[1])
        return found
