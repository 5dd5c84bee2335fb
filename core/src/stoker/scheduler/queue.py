"""The queue as a state machine: no await, no I/O, no clock.

A *task* is one run of an action; identical actions in flight share one. Executors offer free slots
and are handed tasks, as many at once as their processors and memory allow. Each call changes the
state wholly or raises before it changed any, and returns what the caller has to do about it: the
assignments that follow.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from stoker.action import LoadedAction, Platform
from stoker.errors import FailedPrecondition, Overloaded
from stoker.resources import Request, Share, requested
from stoker.scheduler.matching import Offer, differences, requirements, satisfies
from stoker.scheduler.occupancy import Occupancy

_FEW_VOID = 32


class Stage(Enum):
    """Where a task stands."""

    QUEUED = "queued"
    EXECUTING = "executing"
    COMPLETED = "completed"


def merge_key(action: LoadedAction) -> Hashable:
    """Equal for identical actions of one instance."""
    return (action.namespace, action.digest)


class _Kind(NamedTuple):
    """What tasks have in common that can take each other's place."""

    eligible: frozenset[str]
    """The executors that satisfy their requirements, and are large enough."""
    request: Request


@dataclass(eq=False, slots=True)
class Task:
    """One run of an action, on behalf of one or more operations."""

    action: LoadedAction
    priority: int
    sequence: int
    kind: _Kind
    stage: Stage = Stage.QUEUED
    executor: str | None = None
    """Who has it: its share of that executor is taken until the executor lets go of it."""
    saving: str | None = None
    """The executor that takes nothing behind this task, so that there will be room for it."""
    attempts: int = 0

    @property
    def merge_key(self) -> Hashable:
        """Equal for tasks that may be one (EXE-21, EXE-22); unique where they may not."""
        return merge_key(self.action) if self.action.cacheable else self

    @property
    def rank(self) -> tuple[int, int]:
        """The order of tasks: by priority value, then by arrival."""
        return (self.priority, self.sequence)


class Assignment(NamedTuple):
    """A task to be handed to a slot that was offered."""

    task: Task
    executor: str


@dataclass(eq=False, slots=True)
class Group:
    """Waiting tasks of one kind, soonest first.

    Handing out costs by the number of groups, not of tasks: where the first finds no room, no
    other does.
    """

    _waiting: list[tuple[tuple[int, int], Task]] = field(default_factory=list)
    _void: int = 0

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
            self._void = max(0, self._void - 1)
        return None

    def note_void(self) -> None:
        """An entry has become void. When many are, they are all dropped: behind a head that waits
        for long they would else be kept, with their actions, for as long."""
        self._void += 1
        if self._void > len(self._waiting) // 2 + _FEW_VOID:
            self._waiting = [
                (rank, task)
                for rank, task in self._waiting
                if task.stage is Stage.QUEUED and task.rank == rank
            ]
            heapq.heapify(self._waiting)
            self._void = 0


class Queue:
    """Tasks waiting and running, and the executors that take them.

    Order: lower priority value first (EXE-17), then order of arrival. A task that finds no room
    lets later ones pass, but for one executor that is saved for it: that one takes nothing behind
    it until the task has begun, there or elsewhere. So nothing that comes later can keep it
    waiting for longer than what runs already, however much it asks for (SCH-04).
    """

    def __init__(self, executors: Mapping[str, Offer], *, max_queued: int) -> None:
        self._offers = dict(executors)
        self._max_queued = max_queued
        self._groups: dict[_Kind, Group] = {}
        self._in_flight: dict[Hashable, Task] = {}
        self._occupancy = {name: Occupancy(offer.capacity) for name, offer in executors.items()}
        self._rotation = deque(executors)
        self._sequence = 0
        self.queued = 0
        """How many tasks wait."""
        self.executing = 0
        """How many tasks run."""

    def add(
        self, action: LoadedAction, priority: int, executors: Collection[str]
    ) -> tuple[Task, list[Assignment]]:
        """Accept `action` for one of `executors`, or join its twin in flight.

        Returns the task, too. Raises InvalidRequest where its platform asks for no amount of
        anything, FailedPrecondition where no executor can ever match (EXE-13), Overloaded where
        the queue is full (EXE-25).
        """
        if twin := self.in_flight(action):
            self._raise_priority(twin, priority)
            return twin, self._assign()
        kind = self._kind(action.platform, executors)
        task = Task(action, priority, self._sequence, kind)
        if self.queued >= self._max_queued and not self._starts_at_once(task):
            raise Overloaded(f"{self.queued} actions are queued, the most allowed", 5.0)
        self._sequence += 1
        self._in_flight[task.merge_key] = task
        self._enqueue(task)
        return task, self._assign()

    def in_flight(self, action: LoadedAction) -> Task | None:
        """The task that `action` would share."""
        return self._in_flight.get(merge_key(action)) if action.cacheable else None

    def free(self, executor: str) -> Share:
        """What no task has of `executor`."""
        return self._occupancy[executor].free

    def offer(self, executor: str) -> list[Assignment]:
        """A slot of `executor` is free, and waits for a task."""
        self._occupancy[executor].slots += 1
        return self._assign()

    def withdraw(self, executor: str) -> None:
        """A slot that was offered is no longer free."""
        self._occupancy[executor].slots -= 1

    def complete(self, task: Task) -> list[Assignment]:
        """`task` has ended, in whatever way. No error if it had before.

        An executor that has it keeps its share until it lets go of it by `release`.
        """
        if task.stage is Stage.COMPLETED:
            return []
        self._count(task, -1)
        waited = task.stage is Stage.QUEUED
        task.stage = Stage.COMPLETED
        if waited:
            self._groups[task.kind].note_void()
        del self._in_flight[task.merge_key]
        self._forget_if_empty(task.kind)
        return self._assign()

    def release(self, task: Task) -> list[Assignment]:
        """The executor that was handed `task`, which has ended, has nothing left of it."""
        self._take_back(task)
        return self._assign()

    def requeue(self, task: Task) -> list[Assignment]:
        """`task` was handed out and not run: it waits again, at its old place (OPS-14)."""
        self._take_back(task)
        self._count(task, -1)
        task.stage = Stage.QUEUED
        self._enqueue(task)
        return self._assign()

    def _kind(self, platform: Platform, executors: Collection[str]) -> _Kind:
        required, request = requirements(platform), requested(platform)
        eligible = frozenset(e for e in executors if satisfies(self._offers[e], required, request))
        if not eligible:
            raise FailedPrecondition(self._explain(required, request, executors))
        return _Kind(eligible, request)

    def _explain(self, required: Platform, request: Request, executors: Collection[str]) -> str:
        reasons = [
            f"executor {name!r}: {'; '.join(differences(self._offers[name], required, request))}"
            for name in executors
        ]
        return f"no executor matches the action's platform: {'. '.join(reasons)}"

    def _enqueue(self, task: Task) -> None:
        self._groups.setdefault(task.kind, Group()).push(task)
        self._count(task, 1)

    # --- handing out

    def _assign(self) -> list[Assignment]:
        """Hand out what can begin now, in order of rank."""
        assignments: list[Assignment] = []
        saved: set[str] = set()
        if not self.queued:
            return assignments
        for task in self._heads():
            if not self._any_slot(saved):
                break
            if executor := self._room_for(task, saved):
                self._hand_over(task, executor)
                assignments.append(Assignment(task, executor))
            else:
                self._save_for(task, saved)
        return assignments

    def _heads(self) -> Iterator[Task]:
        """The soonest task of each group by rank; and once one is taken, the next of its group."""
        heads = [(head.rank, group) for group in self._groups.values() if (head := group.head())]
        heapq.heapify(heads)
        while heads:
            _, group = heapq.heappop(heads)
            task = group.head()
            assert task is not None, "tasks leave a group by being handed out only"
            yield task
            if task.stage is not Stage.QUEUED and (head := group.head()):
                heapq.heappush(heads, (head.rank, group))

    def _any_slot(self, saved: Collection[str]) -> bool:
        return any(o.slots for name, o in self._occupancy.items() if name not in saved)

    def _room_for(self, task: Task, saved: Collection[str]) -> str | None:
        """The executor with room for `task` that was given work least recently."""
        request, eligible = task.kind.request, task.kind.eligible - set(saved)
        fitting = (e for e in self._rotation if e in eligible and self._occupancy[e].fits(request))
        return next(fitting, None)

    def _save_for(self, task: Task, saved: set[str]) -> None:
        """Keep tasks behind `task` from one executor. It stays the same one while it can: else
        each in turn would be filled up again."""
        if task.saving is None or task.saving in saved:
            task.saving = next(
                (name for name in self._rotation if self._could_save(name, task, saved)), None
            )
        if task.saving is not None:
            saved.add(task.saving)

    def _could_save(self, executor: str, task: Task, saved: Collection[str]) -> bool:
        # One without a free slot takes nothing anyway.
        return (
            executor in task.kind.eligible
            and executor not in saved
            and self._occupancy[executor].slots > 0
        )

    def _starts_at_once(self, task: Task) -> bool:
        """Whether `task`, which is not in the queue yet, would be handed out."""
        saved = {
            ahead.saving
            for group in self._groups.values()
            if (ahead := group.head()) and ahead.saving and ahead.rank < task.rank
        }
        return self._room_for(task, saved) is not None

    def _hand_over(self, task: Task, executor: str) -> None:
        self._count(task, -1)
        self._occupancy[executor].take(task.kind.request)
        self._rotation.remove(executor)
        self._rotation.append(executor)
        task.stage, task.executor, task.saving = Stage.EXECUTING, executor, None
        task.attempts += 1
        self._count(task, 1)
        self._forget_if_empty(task.kind)

    def _take_back(self, task: Task) -> None:
        assert task.executor is not None, "it was handed out"
        self._occupancy[task.executor].give_back(task.kind.request)
        task.executor = None

    def _raise_priority(self, task: Task, priority: int) -> None:
        """A second, more urgent request lifts the shared task (EXE-22)."""
        if priority >= task.priority:
            return
        task.priority = priority
        if task.stage is Stage.QUEUED:
            self._groups[task.kind].note_void()
            self._groups[task.kind].push(task)

    def _count(self, task: Task, change: int) -> None:
        if task.stage is Stage.QUEUED:
            self.queued += change
        elif task.stage is Stage.EXECUTING:
            self.executing += change

    def _forget_if_empty(self, kind: _Kind) -> None:
        group = self._groups.get(kind)
        if group is not None and group.head() is None:
            del self._groups[kind]
