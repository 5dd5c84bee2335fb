"""Whose turn it is: tenants, their invocations, and what each holds of the executors. Pure.

The one that holds least goes first; of those that hold as much, the one whose last turn is longest
ago. Who comes anew, holding nothing, is behind those that wait for their turn without holding
anything, and before all others: so a single action waits for one slot to become free, however many
of somebody else's are queued (SCH-03).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from stoker.action import LoadedAction

_FEW_STALE = 16

Level = tuple[int, int]
"""A priority, and 0 for a mnemonic that goes before others of the same priority, or 1."""

Standing = tuple[int, int, int]
"""Lower goes first, and no two parties have the same: what it has of the executors, in thousandths
of a processor; its last turn; and a number that tells apart what came between the same two."""


class Account:
    """What one party has of the executors, and when it last got some of it."""

    __slots__ = ("places", "standing", "tasks")

    def __init__(self, turn: int, number: int) -> None:
        self.standing: Standing = (0, turn, number)
        self.tasks = 0
        """How many in flight are on its behalf. With the last of them it is forgotten."""
        self.places: dict[Entrant, Callable[[Any], None]] = {}
        """Where it waits, and what places it by its standing there."""

    def take(self, held: int, turn: int) -> None:
        """It has its turn, and holds more by `held`."""
        before, _, number = self.standing
        self._stand((before + held, turn, number))

    def give_back(self, held: int) -> None:
        """It holds less by `held`."""
        before, turn, number = self.standing
        self._stand((before - held, turn, number))

    def _stand(self, standing: Standing) -> None:
        self.standing = standing
        for entrant, place in self.places.items():
            place(entrant)


class Party:
    """On whose behalf a task runs. Fairness is over tenants, then over invocations of each."""

    __slots__ = ("invocation", "invocation_name", "tenant", "tenant_name")

    def __init__(
        self,
        tenant_name: Hashable,
        invocation_name: Hashable,
        tenant: Account,
        invocation: Account,
    ) -> None:
        self.tenant_name = tenant_name
        self.invocation_name = invocation_name
        self.tenant = tenant
        self.invocation = invocation


def names_of(action: LoadedAction) -> tuple[Hashable, Hashable]:
    """The tenant that sent `action`, a client at an instance, and its invocation."""
    tenant = (action.namespace, action.principal)
    return tenant, (tenant, action.metadata.tool_invocation_id)


class Ledger:
    """The accounts of everybody who has something in flight."""

    def __init__(self) -> None:
        self._tenants: dict[Hashable, Account] = {}
        self._parties: dict[Hashable, Party] = {}
        self._turns = 0
        self._opened = 0

    def __len__(self) -> int:
        return len(self._tenants) + len(self._parties)

    def join(self, action: LoadedAction) -> Party:
        """A task is on behalf of whoever sent `action`, until `leave`.

        The same party as of others in flight from there.
        """
        tenant_name, invocation_name = names_of(action)
        party = self._parties.get(invocation_name)
        if party is None:
            tenant = self._tenants.get(tenant_name)
            if tenant is None:
                tenant = self._tenants[tenant_name] = self._open()
            party = Party(tenant_name, invocation_name, tenant, self._open())
            self._parties[invocation_name] = party
        party.tenant.tasks += 1
        party.invocation.tasks += 1
        return party

    def leave(self, party: Party) -> None:
        """A task is no longer on behalf of `party`."""
        party.tenant.tasks -= 1
        party.invocation.tasks -= 1
        if not party.invocation.tasks:
            del self._parties[party.invocation_name]
            if not party.tenant.tasks:
                del self._tenants[party.tenant_name]

    def take(self, party: Party, held: int) -> None:
        """`party` has its turn, and holds more by `held`."""
        self._turns += 1
        # Even, so that who comes before the next turn is placed before this one, and behind those
        # whose last turn was earlier.
        party.tenant.take(held, 2 * self._turns)
        party.invocation.take(held, 2 * self._turns)

    def give_back(self, party: Party, held: int) -> None:
        """`party` holds less by `held`."""
        party.tenant.give_back(held)
        party.invocation.give_back(held)

    def _open(self) -> Account:
        self._opened += 1
        return Account(2 * self._turns - 1, self._opened)


Key = tuple[Level, Standing]


class Entrant:
    """A party that waits somewhere."""

    __slots__ = ("account", "level")

    def __init__(self, account: Account, level: Level = (0, 0)) -> None:
        self.account = account
        self.level = level
        """Counts before what the party holds."""

    @property
    def key(self) -> Key:
        return (self.level, self.account.standing)


E = TypeVar("E", bound=Entrant)


class Contest(Generic[E]):
    """Parties that wait for the same thing.

    A party whose standing changes is placed anew, and its old entry is stale: no change costs more
    than the logarithm of the number of parties, and next to nothing where there is one alone.
    """

    __slots__ = ("_entrants", "_entries", "_placed")

    def __init__(self) -> None:
        self._entries: list[tuple[Key, int, E]] = []
        self._placed = 0
        self._entrants: dict[Hashable, E] = {}

    def get(self, name: Hashable) -> E | None:
        """The entrant of this name."""
        return self._entrants.get(name)

    def enter(self, name: Hashable, entrant: E) -> None:
        """`entrant` waits here from now on."""
        self._entrants[name] = entrant
        entrant.account.places[entrant] = self._place
        if len(self._entrants) == 2:  # the first was alone, and in no order
            self._order_anew()
        else:
            self._place(entrant)

    def leave(self, name: Hashable) -> None:
        """The entrant of this name waits here no longer."""
        entrant = self._entrants.pop(name)
        del entrant.account.places[entrant]

    def first(self) -> E | None:
        """The one whose turn it is."""
        if len(self._entrants) < 2:
            return next(iter(self._entrants.values()), None)
        while True:
            key, _, entrant = self._entries[0]
            if entrant in entrant.account.places and entrant.key == key:
                return entrant
            heapq.heappop(self._entries)

    def _place(self, entrant: E) -> None:
        """Place `entrant` by its key, which may have changed."""
        if len(self._entrants) < 2:
            return
        if len(self._entries) > 2 * len(self._entrants) + _FEW_STALE:
            self._order_anew()
        else:
            self._placed += 1
            heapq.heappush(self._entries, (entrant.key, self._placed, entrant))

    def _order_anew(self) -> None:
        self._entries = [(e.key, i, e) for i, e in enumerate(self._entrants.values())]
        heapq.heapify(self._entries)
        self._placed = len(self._entries)
