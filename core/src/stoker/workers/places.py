"""Who may have which worker. Pure: no await, no clock, no process.

A *place* is the right to have one process, whether that is busy, idle or being ended.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from stoker.workers.key import WorkerKey


class Placed(Protocol):
    """What a worker must tell."""

    @property
    def key(self) -> WorkerKey:
        """What it can serve."""

    @property
    def usable(self) -> bool:
        """Whether it can serve another request."""


PlacedT = TypeVar("PlacedT", bound=Placed)


class Ticket(Generic[PlacedT]):
    """Somebody who waits for a worker."""

    def __init__(self, key: WorkerKey, on_granted: Callable[[], object]) -> None:
        self.key = key
        self.on_granted = on_granted
        self.granted = False
        self.worker: PlacedT | None = None
        """What was granted: an idle worker, or None for a place to start a new one in."""


class Places(Generic[PlacedT]):
    """The places of one pool. Whoever changes anything calls `settle` next."""

    def __init__(self, max_workers: int, max_workers_per_key: int) -> None:
        self._max_workers = max_workers
        self._max_workers_per_key = max_workers_per_key
        self._held: Counter[WorkerKey] = Counter()
        self._placed: set[PlacedT] = set()
        self._idle: OrderedDict[PlacedT, None] = OrderedDict()  # least recently used first
        self._idle_by_key: dict[WorkerKey, list[PlacedT]] = {}
        self._ending: set[PlacedT] = set()
        self._waiting: OrderedDict[Ticket[PlacedT], None] = OrderedDict()

    @property
    def held(self) -> int:
        """How many places are taken."""
        return self._held.total()

    @property
    def idle(self) -> int:
        """How many workers are idle."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """How many wait for a worker."""
        return len(self._waiting)

    def ask(self, ticket: Ticket[PlacedT]) -> None:
        """Queue up."""
        self._waiting[ticket] = None

    def withdraw(self, ticket: Ticket[PlacedT]) -> None:
        """Give up waiting. Not for tickets that were granted."""
        del self._waiting[ticket]

    def enter(self, worker: PlacedT) -> None:
        """`worker`, which is new, takes the place that was granted."""
        self._placed.add(worker)

    def decline(self, ticket: Ticket[PlacedT]) -> None:
        """Give back a granted place that no worker has entered."""
        self._release(ticket.key)

    def rest(self, worker: PlacedT) -> None:
        """`worker` keeps its place and has nothing to do. Nothing happens if it is gone."""
        if worker in self._placed:
            self._idle[worker] = None
            self._idle_by_key.setdefault(worker.key, []).append(worker)

    def leave(self, worker: PlacedT) -> None:
        """`worker` is being ended and keeps its place until then. No error if it is gone."""
        self._forget_idle(worker)
        if worker in self._placed:
            self._ending.add(worker)

    def free(self, worker: PlacedT) -> None:
        """`worker` is gone, and its place free."""
        self._forget_idle(worker)
        self._ending.discard(worker)
        self._placed.remove(worker)
        self._release(worker.key)

    def _release(self, key: WorkerKey) -> None:
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]

    def settle(self) -> list[PlacedT]:
        """Grant what can be granted, first come first served. Returns the workers to be ended.

        Those are the least recently used of the idle, as many as somebody waits for with only
        the total in the way. One who waits for a key's limit holds up nobody else.
        """
        leaving: list[PlacedT] = []
        blocked: Counter[WorkerKey] = Counter()
        for ticket in list(self._waiting):
            key = ticket.key
            if self._grant(ticket):
                del self._waiting[ticket]
            elif self._held[key] + blocked[key] < self._max_workers_per_key:
                blocked[key] += 1
                # Now rather than after the loop: a later ticket might take the idle worker, and
                # a busy key keep all others out for good.
                leaving += self._make_way(blocked.total())
        return leaving

    def _make_way(self, needed: int) -> list[PlacedT]:
        if len(self._ending) >= needed or not self._idle:
            return []
        worker = next(iter(self._idle))
        self.leave(worker)
        return [worker]

    def _grant(self, ticket: Ticket[PlacedT]) -> bool:
        ticket.worker = self._take_idle(ticket.key)
        if ticket.worker is None and not self._take_place(ticket.key):
            return False
        ticket.granted = True
        ticket.on_granted()
        return True

    def _take_idle(self, key: WorkerKey) -> PlacedT | None:
        """Last in, first out: its files are warm, and those not needed grow old and expire."""
        while stack := self._idle_by_key.get(key):
            worker = stack[-1]
            self._forget_idle(worker)
            if worker.usable:
                return worker
            self._ending.add(worker)
        return None

    def _take_place(self, key: WorkerKey) -> bool:
        if self.held >= self._max_workers or self._held[key] >= self._max_workers_per_key:
            return False
        self._held[key] += 1
        return True

    def _forget_idle(self, worker: PlacedT) -> None:
        if worker not in self._idle:
            return
        del self._idle[worker]
        stack = self._idle_by_key[worker.key]
        stack.remove(worker)
        if not stack:
            del self._idle_by_key[worker.key]
