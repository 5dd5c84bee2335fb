"""Who may have which worker. Pure: no await, no clock, no process."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic

from stoker.workers.granting import Granting, Ticket
from stoker.workers.key import WorkerKey
from stoker.workers.shelves import Departure, Place, PlacedT, Reason, Shelf, Shelves

__all__ = ["Departure", "Place", "Places", "Reason", "Ticket"]


class Places(Generic[PlacedT]):
    """The places of one pool. Whoever changes anything calls `settle` next."""

    def __init__(
        self,
        max_workers: int,
        max_memory_bytes: int | None = None,
        max_worker_memory_bytes: int | None = None,
    ) -> None:
        self._max_workers = max_workers
        self._max_memory_bytes = max_memory_bytes
        self._max_worker_memory_bytes = max_worker_memory_bytes
        self._shelves: Shelves[PlacedT] = Shelves()
        self._by_worker: dict[PlacedT, Place[PlacedT]] = {}
        self._waiting: OrderedDict[Ticket[PlacedT], None] = OrderedDict()
        self._urgent: OrderedDict[Ticket[PlacedT], None] = OrderedDict()

    # --- what there is

    @property
    def held(self) -> int:
        """How many places are taken."""
        return len(self._shelves.places)

    @property
    def idle(self) -> int:
        """How many workers are idle."""
        return len(self._shelves.idle)

    @property
    def waiting(self) -> int:
        """How many wait for a worker."""
        return len(self._waiting) + len(self._urgent)

    @property
    def memory_bytes(self) -> int | None:
        """What all use, as far as it was measured; None if nothing was."""
        return self._shelves.memory_bytes

    def waiting_for(self, key: WorkerKey) -> int:
        """How many wait for a worker of this key."""
        shelf = self._shelves.shelves.get(key)
        return shelf.waiting if shelf is not None else 0

    def count_of(self, key: WorkerKey) -> int:
        """How many workers of this key there are, or are granted, that are not being ended."""
        shelf = self._shelves.shelves.get(key)
        return len(shelf.places) if shelf is not None else 0

    def place_of(self, worker: PlacedT) -> Place[PlacedT] | None:
        """The place of a worker, to be read only; None if it is gone."""
        return self._by_worker.get(worker)

    def is_idle(self, worker: PlacedT) -> bool:
        """Whether it has nothing to do, and may be given something."""
        return self._by_worker.get(worker) in self._shelves.idle

    def least_recently_used(self) -> PlacedT | None:
        """The worker that has been idle for longest."""
        place = next(iter(self._shelves.idle), None)
        return place.worker if place is not None else None

    # --- who asks

    def ask(self, ticket: Ticket[PlacedT]) -> None:
        """Queue up."""
        self._queue(ticket)[ticket] = None
        ticket.shelf = self._shelves.shelf(ticket.key)
        ticket.shelf.waiting += 1

    def withdraw(self, ticket: Ticket[PlacedT]) -> None:
        """Give up waiting. Not for tickets that were granted."""
        self._shelves.tidy(self._dequeue(ticket))

    def enter(self, ticket: Ticket[PlacedT], worker: PlacedT) -> None:
        """`worker`, which is new, takes the place that was granted, with its first request."""
        place = ticket.place
        assert place is not None, "it was granted"
        self._by_worker[worker] = place
        self._shelves.enter(place, worker)

    def decline(self, ticket: Ticket[PlacedT]) -> None:
        """Give back what was granted and not used: a place, or a lease of a worker."""
        place = ticket.place
        assert place is not None, "it was granted"
        if place.worker is None:
            self._shelves.remove(place)
        else:
            self._shelves.take_back(place)

    # --- what becomes of workers; nothing does of those that are gone

    def release(self, worker: PlacedT) -> None:
        """One request of `worker` is over."""
        if place := self._by_worker.get(worker):
            self._shelves.release(place)

    def retire(self, worker: PlacedT, reason: Reason) -> None:
        """`worker` gets no further request, and ends once it is idle. The first reason counts."""
        if place := self._by_worker.get(worker):
            self._shelves.retire(place, reason)

    def leave(self, worker: PlacedT, reason: Reason) -> None:
        """`worker` is being ended at once, and keeps its place until it is gone."""
        if place := self._by_worker.get(worker):
            self._shelves.withhold(place, reason)
            place.is_ended_at_once = True

    def free(self, worker: PlacedT) -> Reason:
        """`worker` is gone, and its place free. Returns why it went."""
        place = self._by_worker.pop(worker)
        self._shelves.withhold(place, "failed")
        self._shelves.remove(place)
        assert place.ending is not None, "it is withheld"
        return place.ending

    # --- memory

    def measured(self, worker: PlacedT, memory_bytes: int | None) -> None:
        """What `worker` uses now. Once all are measured, `save_memory` acts on it."""
        if place := self._by_worker.get(worker):
            place.memory_bytes = memory_bytes

    def save_memory(self) -> None:
        """Retire those that are too large, and what is too much of all together."""
        staying = [place for place in self._shelves.places if _stays(place)]
        most = self._max_worker_memory_bytes
        for place in staying:
            if most is not None and (place.memory_bytes or 0) > most:
                self._shelves.retire(place, "evicted")
        if self._max_memory_bytes is not None:
            self._save([place for place in staying if _stays(place)], self._max_memory_bytes)

    def _save(self, staying: list[Place[PlacedT]], most_bytes: int) -> None:
        """Idle ones end until the rest is within the budget; then busy ones, once they are."""
        excess = sum(place.memory_bytes or 0 for place in staying) - most_bytes
        staying.sort(key=lambda place: (place not in self._shelves.idle, place.reluctance))
        for place in staying:
            if excess <= 0:
                return
            self._shelves.retire(place, "evicted")
            excess -= place.memory_bytes or 0

    # --- who gets what

    def settle(self) -> list[Departure[PlacedT]]:
        """Grant what can be granted: high priority first, then first come first served.

        Returns the workers to be ended. Who waits for the limit of a key or of a mnemonic, or for
        memory, holds up nobody else.
        """
        if self._urgent or self._waiting:
            self._grant_all()
        return self._shelves.take_departures()

    def _grant_all(self) -> None:
        granting = Granting(self._shelves, self._max_workers, self._max_memory_bytes)
        for ticket in [*self._urgent, *self._waiting]:
            place = granting.grant(ticket)
            if place is not None:
                self._dequeue(ticket)
                ticket.place = place
                ticket.on_granted()

    def _dequeue(self, ticket: Ticket[PlacedT]) -> Shelf[PlacedT]:
        del self._queue(ticket)[ticket]
        assert ticket.shelf is not None, "it waits"
        ticket.shelf.waiting -= 1
        return ticket.shelf

    def _queue(self, ticket: Ticket[PlacedT]) -> OrderedDict[Ticket[PlacedT], None]:
        return self._urgent if ticket.terms.high_priority else self._waiting


def _stays(place: Place[PlacedT]) -> bool:
    return bool(place.memory_bytes) and place.ending is None and place.retiring is None
