"""The places of a pool, by key and by mnemonic, and what becomes of each. Pure.

A *place* is the right to have one process, whether that is starting, idle, busy or being ended.
One lease is one request in flight.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar

from stoker.workers.key import WorkerKey
from stoker.workers.plan import WorkerTerms

Reason = Literal[
    "retired", "expired", "evicted", "invocation", "drained", "failed", "cancelled", "closed"
]
"""Why a worker ends: see `stoker.workers.report.PoolReport.ended`."""


class Placed(Protocol):
    """What a worker must tell."""

    @property
    def usable(self) -> bool:
        """Whether it can be given a request, its other requests apart."""


PlacedT = TypeVar("PlacedT", bound=Placed)


class Departure(NamedTuple, Generic[PlacedT]):
    """A worker that is to be ended now."""

    worker: PlacedT
    at_once: bool
    """Whether somebody waits for its place, or it is past being asked politely."""


class Place(Generic[PlacedT]):
    """One place, and the worker that has it. Changed by `Shelves` alone."""

    def __init__(self, shelf: Shelf[PlacedT], name: str, terms: WorkerTerms) -> None:
        self.shelf = shelf
        self.name = name
        self.terms = terms
        self.worker: PlacedT | None = None
        """None from the grant until a worker has been made."""
        self.leases = 0
        self.requests = 0
        """How many it was given so far."""
        self.retiring: Reason | None = None
        """Why it is given no further request; it ends when the last is over."""
        self.ending: Reason | None = None
        self.is_ended_at_once = False
        self.memory_bytes: int | None = None

    @property
    def has_room(self) -> bool:
        """Whether one more request may be given to it."""
        return (
            self.worker is not None
            and self.retiring is None
            and self.ending is None
            and self.leases < self.terms.max_requests_in_flight
        )

    @property
    def makes_way_soon(self) -> bool:
        """Whether it ends, or is anybody's to have, once what it does now is over. One that takes
        several requests at once may never be idle."""
        return self.retiring is not None or self.terms.max_requests_in_flight == 1

    @property
    def reluctance(self) -> tuple[bool, bool, int]:
        """How much is lost with it: the lowest goes first, and of equals the first."""
        return (
            self.terms.high_priority,
            self.memory_bytes is None,
            -(self.memory_bytes or 0),
        )


class Shelf(Generic[PlacedT]):
    """All that is equal in key."""

    def __init__(self, key: WorkerKey) -> None:
        self.key = key
        self.places: dict[Place[PlacedT], None] = {}
        """Those that are not being ended."""
        self.ready: dict[Place[PlacedT], None] = {}
        """Those of them with room for a request; last the one that was used last."""
        self.waiting = 0


class Shelves(Generic[PlacedT]):
    """All places, and the workers that are to be ended."""

    def __init__(self) -> None:
        self.shelves: dict[WorkerKey, Shelf[PlacedT]] = {}
        self.places: dict[Place[PlacedT], None] = {}
        self.named: dict[str, dict[Place[PlacedT], None]] = {}
        """By mnemonic, those that are not being ended."""
        self.idle: OrderedDict[Place[PlacedT], None] = OrderedDict()
        """Least recently used first."""
        self.ending: dict[Place[PlacedT], None] = {}
        self._departures: list[Departure[PlacedT]] = []

    @property
    def memory_bytes(self) -> int | None:
        """What all use, as far as it was measured; None if nothing was."""
        measured = [place.memory_bytes for place in self.places if place.memory_bytes is not None]
        return sum(measured) if measured else None

    def take_departures(self) -> list[Departure[PlacedT]]:
        """The workers that are to be ended since this was asked last."""
        departures, self._departures = self._departures, []
        return departures

    def shelf(self, key: WorkerKey) -> Shelf[PlacedT]:
        """The shelf of a key, made if need be."""
        shelf = self.shelves.get(key)
        if shelf is None:
            shelf = self.shelves[key] = Shelf(key)
        return shelf

    def tidy(self, shelf: Shelf[PlacedT]) -> None:
        """Forget a shelf that nobody needs."""
        if not shelf.places and not shelf.waiting:
            del self.shelves[shelf.key]

    def add(self, shelf: Shelf[PlacedT], name: str, terms: WorkerTerms) -> Place[PlacedT]:
        """A new place, with the first lease of the worker that is to have it."""
        place = Place(shelf, name, terms)
        shelf.places[place] = None
        self.places[place] = None
        self.named.setdefault(name, {})[place] = None
        self._count_lease(place)
        return place

    def enter(self, place: Place[PlacedT], worker: PlacedT) -> None:
        """`worker` takes a new place."""
        place.worker = worker
        self._make_ready(place)

    def lease(self, place: Place[PlacedT]) -> None:
        """One more request for its worker, which has room."""
        self.idle.pop(place, None)
        self._count_lease(place)
        if not place.has_room:
            place.shelf.ready.pop(place, None)

    def _count_lease(self, place: Place[PlacedT]) -> None:
        place.leases += 1
        place.requests += 1
        most = place.terms.max_requests
        if most is not None and place.requests >= most:
            place.retiring = place.retiring or "retired"

    def take_back(self, place: Place[PlacedT]) -> None:
        """A lease of a warm worker was granted to somebody who has gone."""
        place.requests -= 1
        if place.retiring == "retired":
            place.retiring = None
        self.release(place)

    def release(self, place: Place[PlacedT]) -> None:
        """One request is over."""
        place.leases -= 1
        if place.ending is not None:
            return
        if place.retiring is not None and not place.leases:
            self.end(place, place.retiring)
            return
        self._make_ready(place)
        if not place.leases:
            self.idle[place] = None

    def _make_ready(self, place: Place[PlacedT]) -> None:
        if place.has_room:
            place.shelf.ready.pop(place, None)
            place.shelf.ready[place] = None

    def retire(self, place: Place[PlacedT], reason: Reason) -> None:
        """It is given no further request, and ends once it is idle. The first reason counts."""
        if place.ending is not None:
            return
        place.retiring = place.retiring or reason
        place.shelf.ready.pop(place, None)
        if not place.leases:
            self.end(place, place.retiring)

    def drain(self, places: Collection[Place[PlacedT]]) -> None:
        """Retire one that takes several requests at once, and so might never be idle."""
        endless = [place for place in places if place.worker and not place.makes_way_soon]
        if endless:
            self.retire(min(endless, key=lambda place: place.reluctance), "evicted")

    def end(self, place: Place[PlacedT], reason: Reason, *, at_once: bool = False) -> None:
        """Its worker is to be ended."""
        assert place.worker is not None, "only workers are ended"
        self.withhold(place, reason)
        # Whoever failed, or may still be at what nobody waits for, is not asked politely.
        place.is_ended_at_once = at_once or reason in ("failed", "cancelled")
        self._departures.append(Departure(place.worker, place.is_ended_at_once))

    def hurry(self, place: Place[PlacedT]) -> None:
        """Its worker, which was asked politely, is to be ended at once."""
        assert place.worker is not None, "only workers are ended"
        place.is_ended_at_once = True
        self._departures.append(Departure(place.worker, at_once=True))

    def withhold(self, place: Place[PlacedT], reason: Reason) -> None:
        """It is shared no more, and counts for no limit but that of all processes."""
        if place.ending is not None:
            return
        place.ending = reason
        self.ending[place] = None
        self.idle.pop(place, None)
        self._unshelve(place)

    def remove(self, place: Place[PlacedT]) -> None:
        """Nothing is in it any more."""
        if place.ending is None:
            self._unshelve(place)
        self.ending.pop(place, None)
        del self.places[place]

    def _unshelve(self, place: Place[PlacedT]) -> None:
        named = self.named[place.name]
        place.shelf.ready.pop(place, None)
        del place.shelf.places[place], named[place]
        if not named:
            del self.named[place.name]
        self.tidy(place.shelf)
