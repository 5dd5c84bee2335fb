"""The queue as a state machine: no await, no I/O, no clock.

A *task* is one run of an action; identical actions in flight share one. Executors offer free slots
and are handed tasks, as many at once as their processors and memory allow. Each call changes the
state wholly or raises before it changed any, and returns what the caller has to do about it: the
assignments that follow. Calls that may hand out tasks are told the time, `now`, in seconds of a
clock that never goes back.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from stoker.action import LoadedAction
from stoker.errors import FailedPrecondition, Overloaded
from stoker.resources import Share, requested
from stoker.scheduler.affinity import Affinity
from stoker.scheduler.fairness import Ledger, Level, names_of
from stoker.scheduler.group import Group, Rank, rank_of
from stoker.scheduler.matching import Matching, Offer, Requirements
from stoker.scheduler.occupancy import Occupancy
from stoker.scheduler.task import Kind, Stage, Task, merge_key
from stoker.scheduler.waiting import KEPT_FREE, Outlook

__all__ = ["Assignment", "Policy", "Queue", "Stage", "Task", "merge_key"]


@dataclass(frozen=True, slots=True)
class Policy:
    """What the order of tasks goes by, beside what clients ask for."""

    ageing_seconds: float = math.inf
    """How long a task waits until its turn comes whatever its priority, and whosever it is."""
    high_priority_mnemonics: frozenset[str] = frozenset()
    """These go before others of their tenant that have the same priority."""
    matching: Matching = field(default_factory=Matching)


class Assignment(NamedTuple):
    """A task to be handed to a slot that was offered."""

    task: Task
    executor: str


class Queue:
    """Tasks waiting and running, and the executors that take them.

    Order: the tenant that holds least of the executors first; of its tasks, the lowest priority
    value (EXE-17); of those, the invocation that holds least; then order of arrival (SCH-02,
    SCH-03). One that is overdue is passed by a few later ones at most.

    A task that finds no room lets later ones pass, but for one executor that is saved for it: that
    one takes nothing behind it until the task has begun, there or elsewhere. So nothing that comes
    later can keep it waiting for longer than what runs already, however much it asks for (SCH-04).
    """

    def __init__(
        self, executors: Mapping[str, Offer], *, max_queued: int, policy: Policy | None = None
    ) -> None:
        self._offers = dict(executors)
        self._max_queued = max_queued
        self._policy = policy or Policy()
        self._matching = self._policy.matching
        self._groups: dict[Kind, Group] = {}
        self._in_flight: dict[Hashable, Task] = {}
        self._occupancy = {
            name: Occupancy(offer.capacity, self._matching.amounts(offer))
            for name, offer in executors.items()
        }
        self._rotation = deque(executors)
        self._ledger = Ledger()
        self._affinity = Affinity()
        self._sequence = 0
        self.queued = 0
        """How many tasks wait."""
        self.executing = 0
        """How many tasks run."""

    def add(
        self, action: LoadedAction, priority: int, executors: Collection[str], *, now: float
    ) -> tuple[Task, list[Assignment]]:
        """Accept `action` for one of `executors`, or join its twin in flight.

        Returns the task, too. Raises InvalidRequest where its platform asks for no amount of
        anything, FailedPrecondition where no executor can ever match (EXE-13), Overloaded where
        the queue is full (EXE-25).
        """
        if twin := self.in_flight(action):
            self._join(twin, action)
            self._raise_priority(twin, priority)
            return twin, self._assign(now)
        kind = self._kind(action, executors)
        favoured = action.mnemonic in self._policy.high_priority_mnemonics
        task = Task(action, priority, self._sequence, kind, now, favoured)
        task.parties.append(self._ledger.join(action))
        if self.queued >= self._max_queued and not self._starts_at_once(task, now):
            self._ledger.leave(task.parties[0])
            raise Overloaded(f"{self.queued} actions are queued, the most allowed", 5.0)
        self._sequence += 1
        self._in_flight[task.merge_key] = task
        self._enqueue(task)
        return task, self._assign(now)

    def in_flight(self, action: LoadedAction) -> Task | None:
        """The task that `action` would share."""
        return self._in_flight.get(merge_key(action)) if action.cacheable else None

    def free(self, executor: str) -> Share:
        """What no task has of `executor`."""
        return self._occupancy[executor].free

    def outlook(self, task: Task) -> Outlook:
        """What keeps `task`, which waits, from beginning now. Costs by the number of executors."""
        occupancies = {name: self._occupancy.get(name) for name in sorted(task.kind.eligible)}
        obstacles = {
            name: (
                occupancy.lacking(task.kind.request, task.kind.amounts) or KEPT_FREE
                if occupancy
                else "it is not there now"
            )
            for name, occupancy in occupancies.items()
        }
        same = task.parties[0].invocation.tasks - 1
        return Outlook(obstacles, self.queued - 1, self.executing, same, task.saving or "")

    def offer(self, executor: str, *, now: float) -> list[Assignment]:
        """A slot of `executor` is free, and waits for a task."""
        self._occupancy[executor].slots += 1
        return self._assign(now)

    def withdraw(self, executor: str) -> None:
        """A slot that was offered is no longer free."""
        self._occupancy[executor].slots -= 1

    def complete(self, task: Task, *, now: float) -> list[Assignment]:
        """`task` has ended, in whatever way. No error if it had before.

        An executor that has it keeps its share until it lets go of it by `release`.
        """
        if task.stage is Stage.COMPLETED:
            return []
        self._count(task, -1)
        waited = task.stage is Stage.QUEUED
        task.stage = Stage.COMPLETED
        del self._in_flight[task.merge_key]
        if waited:
            self._pull(task)
            self._leave(task)
        return self._assign(now)

    def release(self, task: Task, *, now: float) -> list[Assignment]:
        """The executor that was handed `task`, which has ended, has nothing left of it."""
        self._take_back(task)
        self._leave(task)
        return self._assign(now)

    def requeue(self, task: Task, *, now: float) -> list[Assignment]:
        """`task` was handed out and not run: it waits again, at its old place (OPS-14)."""
        self._take_back(task)
        self._count(task, -1)
        task.stage = Stage.QUEUED
        self._enqueue(task)
        return self._assign(now)

    def _kind(self, action: LoadedAction, executors: Collection[str]) -> Kind:
        needs = self._matching.requirements(action.platform, requested(action.platform))
        eligible = frozenset(e for e in executors if self._satisfies(e, needs))
        if not eligible:
            raise FailedPrecondition(self._explain(needs, executors))
        return Kind(eligible, needs.request, needs.amounts)

    def _satisfies(self, executor: str, needs: Requirements) -> bool:
        return self._matching.satisfies(self._offers[executor], needs)

    def _explain(self, needs: Requirements, executors: Collection[str]) -> str:
        reasons = [
            f"executor {name!r}: {'; '.join(self._matching.differences(self._offers[name], needs))}"
            for name in executors
        ]
        return f"no executor matches the action's platform: {'. '.join(reasons)}"

    # --- on whose behalf

    def _join(self, task: Task, action: LoadedAction) -> None:
        """`task` is on behalf of whoever sent `action`, too: its turn comes by theirs as well."""
        if any((p.tenant_name, p.invocation_name) == names_of(action) for p in task.parties):
            return
        party = self._ledger.join(action)
        task.parties.append(party)
        if task.stage is Stage.QUEUED:
            self._groups[task.kind].push_for(task, party)

    def _leave(self, task: Task) -> None:
        for party in task.parties:
            self._ledger.leave(party)

    def _raise_priority(self, task: Task, priority: int) -> None:
        """A second, more urgent request lifts the shared task (EXE-22)."""
        if priority >= task.priority:
            return
        level = task.level
        task.priority = priority
        if task.stage is Stage.QUEUED:
            self._move(task, level)

    def _move(self, task: Task, level: Level) -> None:
        """`task` was at `level`, and waits where it belongs now."""
        group = self._groups[task.kind]
        for party in task.parties:
            group.push_for(task, party)
            group.pull_from(party, level)

    def _enqueue(self, task: Task) -> None:
        self._groups.setdefault(task.kind, Group()).push(task)
        self._count(task, 1)

    def _pull(self, task: Task) -> None:
        """`task` waits no longer."""
        group = self._groups[task.kind]
        group.pull(task)
        if group.is_empty:
            del self._groups[task.kind]

    # --- handing out

    def _assign(self, now: float) -> list[Assignment]:
        """Hand out what can begin now, in order of rank."""
        assignments: list[Assignment] = []
        saved: set[str] = set()
        without_room: set[Kind] = set()
        # Who has its turn may be another one after each start.
        while self.queued and (begun := self._start_next(saved, without_room, now)):
            assignments.append(begun)
        return assignments

    def _start_next(
        self, saved: set[str], without_room: set[Kind], now: float
    ) -> Assignment | None:
        """Hand out the first in order of rank that has room. For those before it, which are put
        into `without_room` by their kinds, executors are `saved`."""
        if not self._any_slot(saved):
            return None
        for _, task in sorted(h for kind, h in self._heads(now) if kind not in without_room):
            if executor := self._room_for(task, saved):
                self._hand_over(task, executor, now)
                return Assignment(task, executor)
            self._save_for(task, saved)
            without_room.add(task.kind)
            if not self._any_slot(saved):
                break
        return None

    def _heads(self, now: float) -> Iterator[tuple[Kind, tuple[Rank, Task]]]:
        overdue_since = now - self._policy.ageing_seconds
        for kind, group in self._groups.items():
            if head := group.head(overdue_since):
                yield kind, head

    def _any_slot(self, saved: Collection[str]) -> bool:
        return any(o.slots for name, o in self._occupancy.items() if name not in saved)

    def _room_for(self, task: Task, saved: Collection[str]) -> str | None:
        """The executor with room for `task` that is warm for it, or else was given work least
        recently."""
        return self._affinity.prefer(
            task.action,
            [
                executor
                for executor in self._rotation
                if executor in task.kind.eligible
                and executor not in saved
                and self._occupancy[executor].fits(task.kind.request, task.kind.amounts)
            ],
        )

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

    def _starts_at_once(self, task: Task, now: float) -> bool:
        """Whether `task`, which is not in the queue yet, would be handed out."""
        own = rank_of(task, task.parties[0])
        saved = {
            ahead.saving for _, (rank, ahead) in self._heads(now) if ahead.saving and rank < own
        }
        return self._room_for(task, saved) is not None

    def _hand_over(self, task: Task, executor: str, now: float) -> None:
        overdue_since = now - self._policy.ageing_seconds
        for kind, group in self._groups.items():
            if executor in kind.eligible:
                group.note_start(task, overdue_since)
        self._count(task, -1)
        self._rotation.remove(executor)
        self._rotation.append(executor)
        task.stage, task.executor, task.saving = Stage.EXECUTING, executor, None
        task.tried.append(executor)
        self._count(task, 1)
        self._pull(task)
        self._occupancy[executor].take(task.kind.request, task.kind.amounts)
        self._ledger.take(task.parties[0], self._weight(task, executor))
        self._affinity.note(task.action, executor)

    def _take_back(self, task: Task) -> None:
        assert task.executor is not None, "it was handed out"
        self._ledger.give_back(task.parties[0], self._weight(task, task.executor))
        self._occupancy[task.executor].give_back(task.kind.request, task.kind.amounts)
        task.executor = None

    def _weight(self, task: Task, executor: str) -> int:
        return self._occupancy[executor].weight(task.kind.request)

    def _count(self, task: Task, change: int) -> None:
        if task.stage is Stage.QUEUED:
            self.queued += change
        elif task.stage is Stage.EXECUTING:
            self.executing += change
