"""Which kept containers are idle, and who waits for one. Pure: no await, no clock, no engine."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

ThingT = TypeVar("ThingT")


class Ticket(Generic[ThingT]):
    """Somebody who waits for a thing that fits `key`."""

    def __init__(self, key: Hashable, on_settled: Callable[[], object]) -> None:
        self.key = key
        self.thing: ThingT | None = None
        self.error: Exception | None = None
        self._on_settled = on_settled

    def settle(self, thing: ThingT | None, error: Exception | None = None) -> None:
        """Give it a thing, or tell why there is none."""
        self.thing, self.error = thing, error
        self._on_settled()


class Shelf(Generic[ThingT]):
    """Things that were put down to be used again."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._idle: OrderedDict[ThingT, tuple[Hashable, float]] = OrderedDict()  # oldest first
        self._waiting: OrderedDict[Ticket[ThingT], None] = OrderedDict()

    @property
    def idle(self) -> int:
        """How many things lie here."""
        return len(self._idle)

    def waiting(self, key: Hashable) -> int:
        """How many wait for something that fits `key`."""
        return sum(ticket.key == key for ticket in self._waiting)

    def take(self, key: Hashable) -> ThingT | None:
        """What was put down last of those that fit."""
        for thing in reversed(self._idle):
            if self._idle[thing][0] == key:
                del self._idle[thing]
                return thing
        return None

    def wait(self, ticket: Ticket[ThingT]) -> None:
        """Queue up."""
        self._waiting[ticket] = None

    def withdraw(self, ticket: Ticket[ThingT]) -> None:
        """Give up. No error for a ticket that is settled."""
        self._waiting.pop(ticket, None)

    def put(self, key: Hashable, thing: ThingT, now: float) -> list[ThingT]:
        """Hand a thing to who has waited longest, or put it down. Returns what is too many."""
        ticket = self._first_waiting(key)
        if ticket is not None:
            ticket.settle(thing)
            return []
        self._idle[thing] = (key, now)
        return [self._idle.popitem(last=False)[0] for _ in range(len(self._idle) - self._most)]

    def fail(self, key: Hashable, error: Exception) -> None:
        """Tell who has waited longest that nothing comes."""
        ticket = self._first_waiting(key)
        if ticket is not None:
            ticket.settle(None, error)

    def expire(self, before: float) -> list[ThingT]:
        """Take what was put down earlier."""
        old = [thing for thing, (_, put_at) in self._idle.items() if put_at <= before]
        for thing in old:
            del self._idle[thing]
        return old

    def empty(self) -> list[ThingT]:
        """Take all."""
        things = list(self._idle)
        self._idle.clear()
        return things

    def _first_waiting(self, key: Hashable) -> Ticket[ThingT] | None:
        for ticket in self._waiting:
            if ticket.key == key:
                del self._waiting[ticket]
                return ticket
        return None
