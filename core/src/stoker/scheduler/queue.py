"""The queue as a state machine: no await, no I/O, no clock.

A *task* is one run of an action; identical actions in flight share one. Executors offer free slots
and are handed tasks, as many at once as their processors and memory allow. Each call changes the
state wholly or raises before it changed any, and returns what the caller has to do about it: the
assignments that follow. Calls that may hand out tasks are told the time, `now`, in seconds of a
clock that never goes back.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from stoker.action import LoadedAction
from stoker.errors import Overloaded
from stoker.resources import Share
from stoker.scheduler.executors import Executors
from stoker.scheduler.fairness import Ledger, Level
from stoker.scheduler.group import Group, Rank, rank_of
from stoker.scheduler.kinds import Kind, Kinds
from stoker.scheduler.lives import Lives
from stoker.scheduler.matching import Matching, Offer
from stoker.scheduler.task import Assignment, Stage, Task, merge_key
from stoker.scheduler.waiting import Outlook

__all__ = ["Assignment", "Policy", "Queue", "Stage", "Task", "Waiting", "merge_key"]


@dataclass(frozen=True, slots=True)
class Policy:
    """What the order of tasks goes by, beside what clients ask for."""

    ageing_seconds: float = math.inf
    """How long a task waits until its turn comes whatever its priority, and whosever it is."""
    high_priority_mnemonics: frozenset[str] = frozenset()
    """These go before others of their tenant that have the same priority."""
    matching: Matching = field(default_factory=Matching)


class Waiting(NamedTuple):
    """What waits for the same executors."""

    tasks: int
    oldest_at: float
    """When the first of them was accepted."""


class Queue:
    """Tasks waiting and running, and the executors that take them.

    Order: the tenant that holds least of the executors first; of its tasks, the lowest priority
    value (EXE-17); of those, the invocation that holds least; then order of arrival (SCH-02,
    SCH-03). One that is overdue is passed by a few later ones at most.

    A task that finds no room lets later ones pass, but for one executor that is saved for it: that
    one takes nothing behind it until the task has begun, there or elsewhere. So nothing that comes
    later can keep it waiting for longer than what runs already, however much it asks for (SCH-04).

    An executor holds a task by an assignment, until it lets go of it. It may lose it before that:
    its assignment has a life, and that is over (SCH-05), or its task has been handed back. Then the
    task waits again, while what it had there stays taken until the executor has nothing left of it.
    """

    def __init__(
        self, executors: Mapping[str, Offer], *, max_queued: int, policy: Policy | None = None
    ) -> None:
        """All of `executors` are there to begin with. Others can never be."""
        self._max_queued = max_queued
        self._policy = policy or Policy()
        self._kinds = Kinds(executors, self._policy.matching)
        self._executors = Executors(executors, self._policy.matching)
        self._groups: dict[Kind, Group] = {}
        self._in_flight: dict[Hashable, Task] = {}
        self._lives = Lives()
        self._ledger = Ledger()
        self._sequence = 0
        self._stopped = False
        self.stranded: OrderedDict[Task, float] = OrderedDict()
        """What waits while none of the executors that could ever run it is there, and since when
        (EXE-14); longest first."""
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
        kind = self._kinds.of(action, executors)
        favoured = action.mnemonic in self._policy.high_priority_mnemonics
        task = Task(action, priority, self._sequence, kind, now, favoured)
        task.parties.append(self._ledger.join(action))
        begins = None
        if not self.queued or self.queued >= self._max_queued:
            begins = self._room_at_once(task, now)
        if begins is None and self.queued >= self._max_queued:
            self._ledger.leave(task.parties[0])
            raise Overloaded(f"{self.queued} actions are queued, the most allowed", 5.0)
        self._sequence += 1
        self._in_flight[task.merge_key] = task
        if begins is not None and not self.queued:
            # Nobody is before it, and no line has to be kept.
            return task, [self._hand_over(task, begins)]
        self._enqueue(task, now)
        return task, self._assign(now)

    def in_flight(self, action: LoadedAction) -> Task | None:
        """The task that `action` would share."""
        return self._in_flight.get(merge_key(action)) if action.cacheable else None

    # --- executors

    def attach(self, executor: str, *, now: float) -> list[Assignment]:
        """`executor` is there again. No error if it is anyway."""
        if executor not in self._executors.attached:
            self._executors.attach(executor)
            for task in [task for task in self.stranded if executor in task.kind.eligible]:
                del self.stranded[task]
        return self._assign(now)

    def detach(self, executor: str, *, now: float) -> list[Assignment]:
        """`executor` gets nothing from now on. No error if it has gone before.

        What it has it may end; slots that it has offered count again once it is back.
        """
        if executor not in self._executors.attached:
            return []
        self._executors.detach(executor)
        for kind, group in self._groups.items():
            if executor in kind.eligible and self._is_deserted(kind):
                self.stranded |= dict.fromkeys(group.tasks(), now)
        # What was behind the first in order on that executor may begin on others.
        return self._assign(now)

    def stop(self) -> None:
        """Nothing is handed out from now on."""
        self._stopped = True

    def is_attached(self, executor: str) -> bool:
        """Whether `executor` is there."""
        return executor in self._executors.attached

    def free(self, executor: str) -> Share:
        """What no task has of `executor`."""
        return self._executors.free(executor)

    def waiting(self) -> dict[frozenset[str], Waiting]:
        """What waits, by the executors that could run it (SCH-08)."""
        found: dict[frozenset[str], Waiting] = {}
        for kind, group in self._groups.items():
            if oldest := group.oldest:
                known = found.get(kind.eligible, Waiting(0, math.inf))
                since = min(known.oldest_at, oldest.queued_at)
                found[kind.eligible] = Waiting(known.tasks + group.waiting, since)
        return found

    def outlook(self, task: Task) -> Outlook:
        """What keeps `task`, which waits, from beginning now. Costs by the number of executors."""
        obstacles = self._executors.obstacles(task)
        same = task.parties[0].invocation.tasks - 1
        return Outlook(obstacles, self.queued - 1, self.executing, same, task.saving or "")

    def offer(self, executor: str, *, now: float) -> list[Assignment]:
        """A slot of `executor` is free, and waits for a task."""
        self._executors.change_slots(executor, 1)
        return self._assign(now)

    def withdraw(self, executor: str) -> None:
        """A slot that was offered is no longer free."""
        self._executors.change_slots(executor, -1)

    # --- what is handed out

    def renew(self, assignment: Assignment, until: float) -> bool:
        """`assignment` lives until then, unless it is renewed again; without this it has no end.

        Returns whether the executor still has the task: there is nothing to renew of what it has
        lost, nor of what has ended.
        """
        task = assignment.task
        if task.held is not assignment or task.stage is not Stage.EXECUTING:
            return False
        self._lives.renew(assignment, until)
        return True

    def expired(self, now: float) -> list[Assignment]:
        """Those whose life is over, once each. Each is to be requeued, or its task completed."""
        return self._lives.expired(now)

    @property
    def next_expiry(self) -> float:
        """When the next life is over, at the earliest."""
        return self._lives.next_expiry

    def complete(self, task: Task, *, now: float) -> list[Assignment]:
        """`task` has ended, in whatever way. No error if it had before.

        An executor that has it keeps its share until it lets go of it by `release`.
        """
        if task.stage is Stage.COMPLETED:
            return []
        waited = task.stage is Stage.QUEUED
        task.stage = Stage.COMPLETED
        del self._in_flight[task.merge_key]
        if not waited:
            self.executing -= 1
            self._lives.forget(task)
            # Nothing is free before it is released.
            return []
        self.queued -= 1
        self._pull(task)
        self._leave(task)
        return self._assign(now)

    def release(self, assignment: Assignment, *, now: float) -> list[Assignment]:
        """The executor has nothing left of the task, which has ended, or was requeued."""
        task = assignment.task
        self._executors.give_back(assignment)
        if task.held is assignment:
            assert task.stage is Stage.COMPLETED, "what still runs is requeued first"
            self._lose(task)
            self._leave(task)
        return self._assign(now)

    def requeue(self, task: Task, *, now: float, counted: bool = True) -> list[Assignment]:
        """`task`, which runs, is lost by its executor: it waits again, at its old place (OPS-14).

        What the executor says of it no longer counts; its share is taken until it is released.
        It was no attempt unless it is `counted`.
        """
        assert task.held is not None, "it was handed out"
        if not counted:
            task.tried.pop()
        self._lose(task)
        self._lives.forget(task)
        self.executing -= 1
        task.stage = Stage.QUEUED
        self._enqueue(task, now)
        return self._assign(now)

    # --- on whose behalf

    def _join(self, task: Task, action: LoadedAction) -> None:
        """`task` is on behalf of whoever sent `action`, too: its turn comes by theirs as well."""
        party = self._ledger.join(action)
        if party in task.parties:
            self._ledger.leave(party)
            return
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
        task.lift(priority)
        if task.stage is Stage.QUEUED:
            self._move(task, level)

    def _move(self, task: Task, level: Level) -> None:
        """`task` was at `level`, and waits where it belongs now."""
        group = self._groups[task.kind]
        for party in task.parties:
            group.push_for(task, party)
            group.pull_from(party, level)

    def _enqueue(self, task: Task, now: float) -> None:
        group = self._groups.get(task.kind)
        if group is None:
            group = self._groups[task.kind] = Group()
        group.push(task)
        self.queued += 1
        if self._is_deserted(task.kind):
            self.stranded[task] = now

    def _is_deserted(self, kind: Kind) -> bool:
        return kind.eligible.isdisjoint(self._executors.attached)

    def _pull(self, task: Task) -> None:
        """`task` waits no longer."""
        self.stranded.pop(task, None)
        group = self._groups[task.kind]
        group.pull(task)
        if not group.waiting:
            del self._groups[task.kind]

    # --- handing out

    def _assign(self, now: float) -> list[Assignment]:
        """Hand out what can begin now, in order of rank."""
        assignments: list[Assignment] = []
        if self._stopped:
            return assignments
        saved: set[str] = set()
        without_room: set[Kind] = set()
        # Who has its turn may be another one after each start.
        while (
            self.queued
            and self._executors.any_slot(saved)
            and (begun := self._start_next(saved, without_room, now))
        ):
            assignments.append(begun)
        return assignments

    def _start_next(
        self, saved: set[str], without_room: set[Kind], now: float
    ) -> Assignment | None:
        """Hand out the first in order of rank that has room. For those before it, which are put
        into `without_room` by their kinds, executors are `saved`."""
        for _, task in sorted(h for kind, h in self._heads(now) if kind not in without_room):
            if executor := self._executors.room_for(task, saved):
                return self._start(task, executor, now)
            self._executors.save_for(task, saved)
            without_room.add(task.kind)
            if not self._executors.any_slot(saved):
                break
        return None

    def _heads(self, now: float) -> Iterator[tuple[Kind, tuple[Rank, Task]]]:
        overdue_since = now - self._policy.ageing_seconds
        for kind, group in self._groups.items():
            if head := group.head(overdue_since):
                yield kind, head

    def _room_at_once(self, task: Task, now: float) -> str | None:
        """Where `task`, which is not in the queue yet, would begin."""
        if self._stopped:
            return None
        own = rank_of(task, task.parties[0])
        saved = {
            ahead.saving for _, (rank, ahead) in self._heads(now) if ahead.saving and rank < own
        }
        return self._executors.room_for(task, saved)

    def _start(self, task: Task, executor: str, now: float) -> Assignment:
        """Hand out `task`, which waits."""
        overdue_since = now - self._policy.ageing_seconds
        for kind, group in self._groups.items():
            if executor in kind.eligible:
                group.note_start(task, overdue_since)
        self.queued -= 1
        # Its stage first: what waits in a line is told by it.
        task.stage = Stage.EXECUTING
        self._pull(task)
        return self._hand_over(task, executor)

    def _hand_over(self, task: Task, executor: str) -> Assignment:
        assignment = Assignment(task, executor)
        task.stage, task.held, task.saving = Stage.EXECUTING, assignment, None
        task.tried.append(executor)
        self.executing += 1
        self._ledger.take(task.parties[0], self._executors.take(assignment))
        return assignment

    def _lose(self, task: Task) -> None:
        """`task` is nobody's, and what it holds counts for nobody."""
        assert task.held is not None, "it was handed out"
        weight = self._executors.weight(task.kind, task.held.executor)
        self._ledger.give_back(task.parties[0], weight)
        task.held = None
