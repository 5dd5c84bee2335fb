"""One pass over all who wait for workers: who gets what, and who has to make way. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Generic

from stoker.workers.key import WorkerKey
from stoker.workers.plan import WorkerTerms
from stoker.workers.shelves import Place, PlacedT, Shelf, Shelves


class Ticket(Generic[PlacedT]):
    """Somebody who waits for a worker."""

    def __init__(
        self,
        key: WorkerKey,
        on_granted: Callable[[], object],
        *,
        name: str = "",
        terms: WorkerTerms | None = None,
        avoid_warm: bool = False,
    ) -> None:
        self.key = key
        self.on_granted = on_granted
        self.name = name
        self.terms = terms or WorkerTerms()
        self.avoid_warm = avoid_warm
        """Whether only a new process will do."""
        self.shelf: Shelf[PlacedT] | None = None
        """That of its key, while it waits: to look a key up takes longer than all else here."""
        self.place: Place[PlacedT] | None = None
        """What was granted."""

    @property
    def granted(self) -> bool:
        """Whether the wait is over."""
        return self.place is not None

    @property
    def worker(self) -> PlacedT | None:
        """What was granted: a warm worker, or None for a place to start a new one in."""
        return self.place.worker if self.place is not None else None


class Granting(Generic[PlacedT]):
    """The pass. `grant` is called with each ticket in turn."""

    def __init__(
        self, shelves: Shelves[PlacedT], max_workers: int, max_memory_bytes: int | None
    ) -> None:
        self._shelves = shelves
        self._max_workers = max_workers
        self._max_memory_bytes = max_memory_bytes
        self._needed = 0
        # Of those with only the total in the way: later ones are not to take the same room.
        self._promised_by_key: Counter[Shelf[PlacedT]] = Counter()
        self._promised_by_name: Counter[str] = Counter()

    def grant(self, ticket: Ticket[PlacedT]) -> Place[PlacedT] | None:
        """A place for `ticket`, if there is one now; otherwise whoever can makes way for it."""
        shelf = ticket.shelf
        assert shelf is not None, "it waits"
        if not ticket.avoid_warm and (place := self._lease_ready(shelf)):
            return place
        if not self._has_memory() or not self._is_within_limits(ticket, shelf):
            return None
        if len(self._shelves.places) < self._max_workers:
            return self._shelves.add(shelf, ticket.name, ticket.terms)
        self._promised_by_key[shelf] += 1
        self._promised_by_name[ticket.name] += 1
        self._needed += 1
        if self._needed <= self._max_workers:
            self._make_way()
        return None

    def _lease_ready(self, shelf: Shelf[PlacedT]) -> Place[PlacedT] | None:
        """Last in, first out: its files are warm, and those not needed grow old and expire."""
        while shelf.ready:
            place = next(reversed(shelf.ready))
            assert place.worker is not None, "it is ready"
            if place.worker.usable:
                self._shelves.lease(place)
                return place
            self._shelves.retire(place, "failed")
        return None

    def _has_memory(self) -> bool:
        """Whether a process may be started. It may be where there is none, which uses nothing."""
        most = self._max_memory_bytes
        return most is None or (self._shelves.memory_bytes or 0) <= most

    def _is_within_limits(self, ticket: Ticket[PlacedT], shelf: Shelf[PlacedT]) -> bool:
        terms = ticket.terms
        taken = len(shelf.places) + self._promised_by_key[shelf]
        # Whoever takes warm ones has found none: there is none to be sent away.
        if taken >= terms.max_workers_per_key and not (
            ticket.avoid_warm and self._free_one(shelf.places)
        ):
            return False
        most = terms.max_workers_per_mnemonic
        named = self._shelves.named.get(ticket.name, {})
        within = most is None or len(named) + self._promised_by_name[ticket.name] < most
        return within or self._free_one(named)

    def _free_one(self, places: dict[Place[PlacedT], None]) -> bool:
        """Whether one of `places` was idle, and makes way. Otherwise see that one will be."""
        idle = [place for place in self._shelves.idle if place in places]
        if idle:
            self._shelves.end(_first_to_go(idle), "evicted")
            return True
        if not any(place.makes_way_soon for place in places):
            self._shelves.drain(places)
        return False

    def _make_way(self) -> None:
        """See that as many places as are needed become free."""
        shelves = self._shelves
        polite = [place for place in shelves.ending if not place.is_ended_at_once]
        promised = len(shelves.ending) - len(polite)
        if promised >= self._needed:
            return
        if polite:
            shelves.hurry(polite[0])
        elif shelves.idle:
            # Now rather than after all tickets: a later one might take the idle worker, and a
            # busy key keep all others out for good.
            shelves.end(_first_to_go(shelves.idle), "evicted", at_once=True)
        else:
            staying = [place for place in shelves.places if place.ending is None]
            if promised + sum(place.makes_way_soon for place in staying) < self._needed:
                shelves.drain(staying)


def _first_to_go(places: Iterable[Place[PlacedT]]) -> Place[PlacedT]:
    return min(places, key=lambda place: place.reluctance)
