"""Waiting tasks of one kind, and which of them is next. Pure.

Handing out costs by the number of groups, not of tasks: where the first finds no room, no other
does.
"""

from __future__ import annotations

from collections.abc import Iterator

from stoker.scheduler.fairness import Account, Contest, Entrant, Level, Party, Standing
from stoker.scheduler.lane import Lane
from stoker.scheduler.task import Stage, Task

MAX_PASSES = 3
"""How many later tasks may begin before one that is overdue, where it has room."""


Rank = tuple[int, Standing, Level, Standing, int]
"""The order of tasks, lower goes first: 0 for one whose turn has come by waiting and 1 for others,
the tenant's standing, the level, the invocation's standing, and the order of arrival."""

_NOBODY: Standing = (0, 0, 0)


def rank_of(task: Task, party: Party) -> Rank:
    """The rank that `task` has as one of `party`."""
    return (1, party.tenant.standing, task.level, party.invocation.standing, task.sequence)


def overdue_rank(task: Task) -> Rank:
    """The rank of a task whose turn has come by waiting."""
    return (0, _NOBODY, (0, 0), _NOBODY, task.sequence)


class _Invocation(Entrant):
    """One invocation's tasks of one level."""

    __slots__ = ("lane",)

    def __init__(self, account: Account, level: Level) -> None:
        super().__init__(account, level)
        self.lane = Lane[Task](lambda task: task.stage is Stage.QUEUED and task.level == level)


class _Tenant(Entrant):
    """One tenant's invocations."""

    __slots__ = ("invocations",)

    def __init__(self, account: Account) -> None:
        super().__init__(account)
        self.invocations = Contest[_Invocation]()


def _waits(task: Task) -> bool:
    return task.stage is Stage.QUEUED


class Group:
    """Waiting tasks of one kind."""

    def __init__(self) -> None:
        self._tenants = Contest[_Tenant]()
        self._arrivals = Lane[Task](_waits)
        self._passes = 0
        self.waiting = 0
        """How many tasks wait."""

    def tasks(self) -> Iterator[Task]:
        """All that wait, in no order."""
        yield from dict.fromkeys(self._arrivals)

    def push(self, task: Task) -> None:
        """`task` waits, on behalf of all of its parties."""
        self.waiting += 1
        self._arrivals.push(task)
        for party in task.parties:
            self.push_for(task, party)

    def push_for(self, task: Task, party: Party) -> None:
        """`task`, which waits, does so on behalf of `party` too, or at another level."""
        tenant = self._tenants.get(party.tenant_name)
        if tenant is None:
            tenant = _Tenant(party.tenant)
            self._tenants.enter(party.tenant_name, tenant)
        name = (party.invocation_name, task.level)
        invocation = tenant.invocations.get(name)
        if invocation is None:
            invocation = _Invocation(party.invocation, task.level)
            tenant.invocations.enter(name, invocation)
        invocation.lane.push(task)

    def pull(self, task: Task) -> None:
        """`task` waits no longer."""
        self.waiting -= 1
        self._arrivals.note_void()
        for party in task.parties:
            self.pull_from(party, task.level)

    def pull_from(self, party: Party, level: Level) -> None:
        """A task of `party` waits at `level` no longer."""
        tenant = self._tenants.get(party.tenant_name)
        name = (party.invocation_name, level)
        if tenant is None or (invocation := tenant.invocations.get(name)) is None:
            return
        invocation.lane.note_void()
        # Emptied ones go at once: what has nothing to wait for must not be first.
        if invocation.lane.head() is None:
            tenant.invocations.leave(name)
            if tenant.invocations.first() is None:
                self._tenants.leave(party.tenant_name)

    @property
    def oldest(self) -> Task | None:
        """The first to come of those that wait."""
        return self._arrivals.head()

    def head(self, overdue_since: float) -> tuple[Rank, Task] | None:
        """The next task, by rank. What was queued before `overdue_since` is overdue."""
        oldest = self.oldest
        if oldest is None:
            return None
        if self._passes >= MAX_PASSES and oldest.queued_at <= overdue_since:
            return overdue_rank(oldest), oldest
        tenant = self._tenants.first()
        assert tenant is not None, "one that waits does so on behalf of somebody"
        invocation = tenant.invocations.first()
        assert invocation is not None, "emptied ones go at once"
        task = invocation.lane.head()
        assert task is not None, "emptied ones go at once"
        account = invocation.account
        return (1, tenant.account.standing, task.level, account.standing, task.sequence), task

    def note_start(self, task: Task, overdue_since: float) -> None:
        """`task` is about to begin, on an executor that those here could have had."""
        oldest = self.oldest
        if oldest is None or oldest.queued_at > overdue_since or oldest is task:
            self._passes = 0
        elif task.sequence > oldest.sequence:
            self._passes += 1
