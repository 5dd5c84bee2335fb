"""The queue as a state machine: no await, no I/O, no clock.

A *task* is one run of an action; identical actions in flight share one. Executors offer free slots
and are handed tasks. Each call changes the state wholly or raises before it changed any, and
returns what the caller has to do about it.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from stoker.action import LoadedAction, Platform
from stoker.errors import FailedPrecondition, Overloaded
from stoker.scheduler.matching import Offer, differences, requirements, satisfies


class Stage(Enum):
    """Where a task stands."""

    QUEUED = "queued"
    EXECUTING = "executing"
    COMPLETED = "completed"


def merge_key(action: LoadedAction) -> Hashable:
    """Equal for identical actions of one instance."""
    return (action.namespace, action.digest)


@dataclass(eq=False, slots=True)
class Task:
    """One run of an action, on behalf of one or more operations."""

    action: LoadedAction
    priority: int
    sequence: int
    eligible: frozenset[str]
    """The executors that satisfy its requirements."""
    stage: Stage = Stage.QUEUED
    executor: str | None = None
    attempts: int = 0

    @property
    def merge_key(self) -> Hashable:
        """Equal for tasks that may be one (EXE-21, EXE-22); unique where they may not."""
        return merge_key(self.action) if self.action.cacheable else self

    @property
    def rank(self) -> tuple[int, int]:
        """The order of tasks: by priority value, then by arrival."""
        return (self.priority, self.sequence)


@dataclass(eq=False, slots=True)
class Group:
    """Waiting tasks that the same executors are eligible for, soonest first.

    Handing out costs by the number of groups, not of tasks.
    """

    _waiting: list[tuple[tuple[int, int], Task]] = field(default_factory=list)

    def push(self, task: Task) -> None:
        """Place `task` by its rank. An entry that it had at another rank is void."""
        heapq.heappush(self._waiting, (task.rank, task))

    def head(self) -> Task | None:
        """The soonest task that waits. Void entries are dropped on the way."""
        while self._waiting:
            rank, task = self._waiting[0]
            if task.stage is Stage.QUEUED and task.rank == rank:
                return task
            heapq.heappop(self._waiting)
        return None


class Queue:
    """Tasks waiting and running, and the executors that take them.

    Order: lower priority value first (EXE-17), then order of arrival.
    """

    def __init__(self, executors: Mapping[str, Offer], *, max_queued: int) -> None:
        self._offers = dict(executors)
        self._max_queued = max_queued
        self._groups: dict[frozenset[str], Group] = {}
        self._in_flight: dict[Hashable, Task] = {}
        self._free: dict[str, int] = dict.fromkeys(executors, 0)
        self._rotation = deque(executors)
        self._sequence = 0
        self.queued = 0
        """How many tasks wait."""
        self.executing = 0
        """How many tasks run."""

    def add(
        self, action: LoadedAction, priority: int, executors: Collection[str]
    ) -> tuple[Task, str | None]:
        """Accept `action` for one of `executors`, or join its twin in flight.

        Returns the task and the executor that it must be handed to now, if any. Raises
        FailedPrecondition where none of them can ever match (EXE-13), Overloaded where the
        queue is full (EXE-25).
        """
        if twin := self.in_flight(action):
            self._raise_priority(twin, priority)
            return twin, None
        eligible = self._eligible(requirements(action.platform), executors)
        task = Task(action, priority, self._sequence, eligible)
        free = self._take_free_slot(eligible)
        if free is None and self.queued >= self._max_queued:
            raise Overloaded(f"{self.queued} actions are queued, the most allowed", 5.0)
        self._sequence += 1
        self._in_flight[task.merge_key] = task
        self._enqueue(task)
        return task, self._hand_over(task, free) if free else None

    def in_flight(self, action: LoadedAction) -> Task | None:
        """The task that `action` would share."""
        return self._in_flight.get(merge_key(action)) if action.cacheable else None

    def offer(self, executor: str) -> Task | None:
        """A slot of `executor` is free: returns its next task, or None and remembers the slot."""
        heads = (g.head() for eligible, g in self._groups.items() if executor in eligible)
        task = min((head for head in heads if head), key=lambda head: head.rank, default=None)
        if task is None:
            self._free[executor] += 1
            return None
        self._hand_over(task, executor)
        return task

    def withdraw(self, executor: str) -> None:
        """A slot that was offered is no longer free."""
        self._free[executor] -= 1

    def complete(self, task: Task) -> None:
        """`task` has ended, in whatever way. No error if it had before."""
        if task.stage is Stage.COMPLETED:
            return
        self._count(task, -1)
        task.stage = Stage.COMPLETED
        del self._in_flight[task.merge_key]
        self._forget_if_empty(task.eligible)

    def requeue(self, task: Task) -> str | None:
        """`task` was handed out and not run: it waits again, at its old place (OPS-14).

        Returns the executor that it must be handed to now, if any.
        """
        self._count(task, -1)
        task.stage, task.executor = Stage.QUEUED, None
        self._enqueue(task)
        free = self._take_free_slot(task.eligible)
        return self._hand_over(task, free) if free else None

    def _eligible(self, required: Platform, executors: Collection[str]) -> frozenset[str]:
        eligible = frozenset(e for e in executors if satisfies(self._offers[e], required))
        if not eligible:
            raise FailedPrecondition(self._explain(required, executors))
        return eligible

    def _explain(self, required: Platform, executors: Collection[str]) -> str:
        reasons = [
            f"executor {name!r}: {'; '.join(differences(self._offers[name], required))}"
            for name in executors
        ]
        return f"no executor matches the action's platform: {'. '.join(reasons)}"

    def _enqueue(self, task: Task) -> None:
        self._groups.setdefault(task.eligible, Group()).push(task)
        self._count(task, 1)

    def _hand_over(self, task: Task, executor: str) -> str:
        """Give `task`, which waits, to `executor`, whose free slot was counted off already."""
        self._count(task, -1)
        task.stage, task.executor = Stage.EXECUTING, executor
        task.attempts += 1
        self._count(task, 1)
        self._forget_if_empty(task.eligible)
        return executor

    def _take_free_slot(self, eligible: frozenset[str]) -> str | None:
        """Take a free slot of the eligible executor that was given work least recently."""
        for name in self._rotation:
            if name in eligible and self._free[name]:
                self._free[name] -= 1
                self._rotation.remove(name)
                self._rotation.append(name)
                return name
        return None

    def _raise_priority(self, task: Task, priority: int) -> None:
        """A second, more urgent request lifts the shared task (EXE-22)."""
        if priority >= task.priority:
            return
        task.priority = priority
        if task.stage is Stage.QUEUED:
            self._groups[task.eligible].push(task)

    def _count(self, task: Task, change: int) -> None:
        if task.stage is Stage.QUEUED:
            self.queued += change
        elif task.stage is Stage.EXECUTING:
            self.executing += change

    def _forget_if_empty(self, eligible: frozenset[str]) -> None:
        group = self._groups.get(eligible)
        if group is not None and group.head() is None:
            del self._groups[eligible]
