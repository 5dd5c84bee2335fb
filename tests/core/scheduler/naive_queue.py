"""What the queue must do, said by lists that are searched from end to end.

Every call goes to the queue, and what it hands out is held against the list of all that waits,
sorted anew for each task. Which of several executors with room a task gets is the queue's choice.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from stoker.action import LoadedAction
from stoker.digest import SHA256
from stoker.errors import Overloaded
from stoker.protos import remote_execution_pb2 as reapi
from stoker.resources import Capacity
from stoker.scheduler.group import MAX_PASSES
from stoker.scheduler.kinds import Kind
from stoker.scheduler.matching import Matching, Offer
from stoker.scheduler.queue import Assignment, Policy, Queue, Stage, Task

GIB = 1024**3
SMALL = Capacity.of_executor(slots=4, cpus=4, memory_bytes=4 * GIB, default_memory_bytes=None)
LARGE = Capacity.of_executor(slots=8, cpus=8, memory_bytes=16 * GIB, default_memory_bytes=GIB)
EXECUTORS = {
    "linux": Offer({"OSFamily": ("linux",), "licences": ("2",)}, SMALL),
    "any": Offer({"OSFamily": ("*",), "licences": ("1.5",)}, LARGE),
}
LICENCES = {"linux": 2000, "any": 1500}
AGEING_SECONDS = 50.0
FAVOURED = "Link"
MAX_QUEUED = 12


class Request(NamedTuple):
    """An action to be added."""

    name: str
    tenant: str
    invocation: str
    priority: int
    mnemonic: str
    platform: Mapping[str, tuple[str, ...]]
    cacheable: bool

    def action(self) -> LoadedAction:
        unlike = f"{self.name} {self.mnemonic} {sorted(self.platform.items())}"
        return LoadedAction(
            namespace=self.tenant,
            digest=SHA256.digest(unlike.encode()),
            action=reapi.Action(do_not_cache=not self.cacheable),
            command=reapi.Command(arguments=["true"]),
            input_root=SHA256.empty,
            platform=self.platform,
            timeout_seconds=None,
            metadata=reapi.RequestMetadata(tool_invocation_id=self.invocation),
            mnemonic=self.mnemonic,
            target=self.name,
        )


class _Standing:
    """What is known of a tenant or an invocation while it has something in flight."""

    def __init__(self, joined: float, number: int) -> None:
        self.turn = joined
        self.number = number


class NaiveQueue:
    """The queue, and the lists beside it."""

    def __init__(self) -> None:
        policy = Policy(AGEING_SECONDS, frozenset({FAVOURED}), Matching({"licences": "consumed"}))
        self.queue = Queue(EXECUTORS, max_queued=MAX_QUEUED, policy=policy)
        self.now = 0.0
        self.waiting: list[Task] = []
        self.running: list[Task] = []
        self.ending: list[Task] = []
        self.lost: list[Assignment] = []
        self.lives: dict[Task, float] = {}
        self.attached = set(EXECUTORS)
        self.stranded: dict[Task, float] = {}
        self.slots = dict.fromkeys(EXECUTORS, 0)
        self.priorities: dict[Task, int] = {}
        self.owners: dict[Task, list[tuple[str, str]]] = {}
        self.standings: dict[tuple[str, ...], _Standing] = {}
        self.turns = 0
        self.joined = 0
        self.passes: dict[Kind, int] = {}
        self.begun = 0

    # --- what can be done to it

    def add(self, request: Request) -> None:
        action = request.action()
        flight = [*self.waiting, *self.running]
        twins = [
            task
            for task in flight
            if task.action.digest == action.digest
            and task.action.namespace == action.namespace
            and task.action.cacheable
        ]
        try:
            task, assignments = self.queue.add(action, request.priority, EXECUTORS, now=self.now)
        except Overloaded:
            assert len(self.waiting) >= MAX_QUEUED  # more, after a requeue
            assert not (request.cacheable and twins)
            assert not self.could_begin(action, request)
            # The number of the account that was opened and closed again is used up.
            return
        if request.cacheable and twins:
            assert twins == [task]
            self.priorities[task] = min(self.priorities[task], request.priority)
        else:
            assert task not in flight
            self.waiting.append(task)
            self.priorities[task] = request.priority
            self.owners[task] = []
        owner = (request.tenant, request.invocation)
        if owner not in self.owners[task]:
            self.owners[task].append(owner)
        for name in ((request.tenant,), owner):
            if name not in self.standings:
                self.standings[name] = _Standing(self.turns - 0.5, self.joined)
                self.joined += 1
        self.check(assignments)

    def offer(self, executor: str) -> None:
        self.slots[executor] += 1
        self.check(self.queue.offer(executor, now=self.now))

    def withdraw(self, executor: str) -> None:
        self.queue.withdraw(executor)
        self.slots[executor] -= 1
        self.check_counts()

    def complete(self, task: Task) -> None:
        self.lives.pop(task, None)
        if task in self.running:
            self.running.remove(task)
            self.ending.append(task)
            assert self.queue.complete(task, now=self.now) == []
            self.check_counts()
        else:
            self.waiting.remove(task)
            self.forget(task)
            self.check(self.queue.complete(task, now=self.now))
        assert self.queue.complete(task, now=self.now) == []

    def release(self, task: Task) -> None:
        self.ending.remove(task)
        self.forget(task)
        self.check(self.queue.release(held_of(task), now=self.now))

    def requeue(self, task: Task, *, counted: bool = True) -> None:
        """Its executor loses it, and has something left of it all the same."""
        self.running.remove(task)
        self.waiting.append(task)
        self.lives.pop(task, None)
        held, attempts = held_of(task), task.attempts
        self.lost.append(held)
        self.check(self.queue.requeue(task, now=self.now, counted=counted))
        assert task.attempts - attempts == int(task in self.running) - int(not counted)

    def release_lost(self, lost: Assignment) -> None:
        self.lost.remove(lost)
        assert not self.queue.renew(lost, self.now + 1), "it is somebody else's now"
        self.check(self.queue.release(lost, now=self.now))

    def attach(self, executor: str) -> None:
        self.attached.add(executor)
        self.check(self.queue.attach(executor, now=self.now))

    def detach(self, executor: str) -> None:
        self.attached.discard(executor)
        self.check(self.queue.detach(executor, now=self.now))

    def renew(self, task: Task, seconds: float) -> None:
        self.lives[task] = self.now + seconds
        assert self.queue.renew(held_of(task), self.now + seconds)
        self.check_counts()

    def expire(self) -> None:
        """What has lived for too long is lost (SCH-05)."""
        over = {task for task, end in self.lives.items() if end <= self.now}
        expired = self.queue.expired(self.now)
        assert {assignment.task for assignment in expired} == over
        for task in over:
            del self.lives[task]
        for assignment in expired:
            assert assignment is assignment.task.held
            self.requeue(assignment.task)
        assert self.queue.next_expiry > self.now

    def drain(self) -> None:
        """Everything ends: then everything is free, and nothing is remembered of anybody."""
        while self.waiting:
            self.complete(self.waiting[-1])
        for task in (*self.running, *self.ending):
            self.queue.complete(task, now=self.now)
        for task in (*self.running, *self.ending):
            assert self.queue.release(held_of(task), now=self.now) == []
        for lost in self.lost:
            assert self.queue.release(lost, now=self.now) == []
        for name, offer in EXECUTORS.items():
            assert self.queue.free(name) == offer.capacity.total
        assert (self.queue.queued, self.queue.executing) == (0, 0)
        assert not len(self.queue._ledger)
        assert not self.queue._groups
        assert not self.queue._lives._ends
        assert not self.queue.stranded

    # --- what it must have done

    def check(self, assignments: list[Assignment]) -> None:
        """`assignments` are what had to follow, and what is left is as it should be."""
        handed_out = list(assignments)
        saved: set[str] = set()
        without_room: set[Kind] = set()
        # Where no slot is free nothing can begin, and what is saved for whom does not matter.
        while any(self.slots[executor] for executor in self.attached) and (
            candidates := [t for t in self.waiting if t.kind not in without_room]
        ):
            standings, oldest = self.all_standings(), self.oldest()
            task = min(candidates, key=lambda t: self.rank(t, standings, oldest[t.kind]))
            fitting = {e for e in self.attached - saved if self.has_room(task, e)}
            if fitting:
                assert handed_out, "one that has room was passed over"
                begun, executor = handed_out.pop(0)
                assert begun is task, "out of turn"
                assert executor in fitting, "no room, or saved for another"
                self.begin(task, executor)
            else:
                without_room.add(task.kind)
                # One that has gone is saved for nobody; nor is there another, or it would be that.
                if task.saving in self.attached:
                    assert task.saving in task.kind.eligible
                    saved.add(task.saving)
                else:
                    assert not any(
                        self.slots[e] for e in task.kind.eligible & self.attached - saved
                    )
        assert not handed_out, "something was handed out twice, or without having been queued"
        self.check_counts()

    def check_counts(self) -> None:
        assert (self.queue.queued, self.queue.executing) == (len(self.waiting), len(self.running))
        assert all(task.stage is Stage.QUEUED for task in self.waiting)
        assert all(task.stage is Stage.EXECUTING for task in self.running)
        # What has lived for too long is looked for in time (SCH-05).
        assert self.queue.next_expiry <= min(self.lives.values(), default=math.inf)
        self.check_stranded()
        self.check_waiting()
        for name, offer in EXECUTORS.items():  # SCH-04
            shares = [offer.capacity.share(task.kind.request) for task in self.held_at(name)]
            free = self.queue.free(name)
            assert min(free) >= 0
            assert free[0] + sum(share.millicpus for share in shares) == offer.capacity.total[0]
            assert free[1] + sum(share.memory_bytes for share in shares) == offer.capacity.total[1]
            assert self.licences_left(name) >= 0

    def check_stranded(self) -> None:  # EXE-14
        deserted = [task for task in self.waiting if not task.kind.eligible & self.attached]
        self.stranded = {task: self.stranded.get(task, self.now) for task in deserted}
        assert self.queue.stranded == self.stranded

    def check_waiting(self) -> None:  # SCH-08
        lines: dict[frozenset[str], list[float]] = {}
        for task in self.waiting:
            lines.setdefault(task.kind.eligible, []).append(task.queued_at)
        told = {eligible: (len(times), min(times)) for eligible, times in lines.items()}
        assert self.queue.waiting() == told

    def held_at(self, executor: str) -> list[Task]:
        """What has a share of it: also what it has lost, and something is left of."""
        held = [task for task in (*self.running, *self.ending) if task.executor == executor]
        return held + [lost.task for lost in self.lost if lost.executor == executor]

    def licences_left(self, executor: str) -> int:
        used = sum(dict(task.kind.amounts).get("licences", 0) for task in self.held_at(executor))
        return LICENCES[executor] - used

    def has_room(self, task: Task, executor: str) -> bool:
        share = EXECUTORS[executor].capacity.share(task.kind.request)
        taken = [EXECUTORS[executor].capacity.share(t.kind.request) for t in self.held_at(executor)]
        total = EXECUTORS[executor].capacity.total
        return (
            self.slots[executor] > 0
            and (executor == "any" or task.action.platform.get("OSFamily") != ("windows",))
            and share.millicpus + sum(s.millicpus for s in taken) <= total.millicpus
            and share.memory_bytes + sum(s.memory_bytes for s in taken) <= total.memory_bytes
            and dict(task.kind.amounts).get("licences", 0) <= self.licences_left(executor)
        )

    def all_standings(self) -> dict[tuple[str, ...], tuple[int, float, int]]:
        """Where each tenant and each invocation stands."""
        held = dict.fromkeys(self.standings, 0)
        for task in (*self.running, *self.ending):
            tenant, run = self.owners[task][0]
            held[tenant,] += self.weight(task)
            held[tenant, run] += self.weight(task)
        return {name: (held[name], s.turn, s.number) for name, s in self.standings.items()}

    def weight(self, task: Task) -> int:
        """What a task that has an executor counts for."""
        assert task.executor
        capacity = EXECUTORS[task.executor].capacity
        share, total = capacity.share(task.kind.request), capacity.total
        return max(share.millicpus, share.memory_bytes * total.millicpus // total.memory_bytes, 1)

    def rank(
        self,
        task: Task,
        standings: Mapping[tuple[str, ...], tuple[int, float, int]],
        oldest: Task,
    ) -> tuple[object, ...]:
        if task is oldest and self.is_overdue(task) and self.passes.get(task.kind, 0) >= MAX_PASSES:
            return (0, task.sequence)
        level = (self.priorities[task], task.action.mnemonic != FAVOURED)
        return min(
            (1, standings[owner[:1]], level, standings[owner], task.sequence)
            for owner in self.owners[task]
        )

    def oldest(self) -> dict[Kind, Task]:
        """The first to come of each kind that waits."""
        # A later entry of a key takes the place of an earlier one.
        backwards = sorted(self.waiting, key=_sequence, reverse=True)
        return {task.kind: task for task in backwards}

    def is_overdue(self, task: Task) -> bool:
        return self.now - task.queued_at >= AGEING_SECONDS

    def begin(self, task: Task, executor: str) -> None:
        for kind, oldest in self.oldest().items():
            if executor not in kind.eligible:
                continue
            if oldest is task or not self.is_overdue(oldest):
                self.passes[kind] = 0
            elif task.sequence > oldest.sequence:
                self.passes[kind] = self.passes.get(kind, 0) + 1
        self.slots[executor] -= 1
        self.waiting.remove(task)
        self.running.append(task)
        self.turns += 1
        self.begun += 1
        tenant, run = self.owners[task][0]
        self.standings[tenant,].turn = self.standings[tenant, run].turn = self.turns
        self.forget_empty_kinds()

    def forget(self, task: Task) -> None:
        """Nothing is left of `task`."""
        del self.owners[task], self.priorities[task]
        known = {o[:length] for owners in self.owners.values() for o in owners for length in (1, 2)}
        self.standings = {name: s for name, s in self.standings.items() if name in known}
        self.forget_empty_kinds()

    def forget_empty_kinds(self) -> None:
        kinds = {task.kind for task in self.waiting}
        self.passes = {kind: count for kind, count in self.passes.items() if kind in kinds}

    def could_begin(self, action: LoadedAction, request: Request) -> bool:
        """Whether what was refused would have begun at once in a queue without a bound."""
        kind = self.queue._kinds.of(replace(action), EXECUTORS)
        task = Task(action, request.priority, 1 << 60, kind, self.now)
        return not self.waiting and any(self.has_room(task, e) for e in self.attached)


def held_of(task: Task) -> Assignment:
    assert task.held is not None
    return task.held


def _sequence(task: Task) -> int:
    return task.sequence
