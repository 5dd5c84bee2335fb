"""Whose turn it is: tenants, their invocations, and what each holds of the executors. Pure.

The one that holds least goes first; of those that hold as much, the one whose last turn is longest
ago. Who comes anew, holding nothing, is behind those that wait for their turn without holding
anything, and before all others: so a single action waits for one slot to become free, however many
of somebody else's are queued (SCH-03).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, TypeVar

from stoker.action import LoadedAction

_FEW_STALE = 16

Level = tuple[int, int]
"""A priority, and 0 for a mnemonic that goes before others of the same priority, or 1."""


class Standing(NamedTuple):
    """Lower goes first. No two parties have the same."""

    held: int
    """What it has of the executors, in thousandths of a processor."""
    turn: int
    number: int
    """Tells apart what came between the same two turns."""


class Account:
    """What one party has of the executors, and when it last got some of it."""

    def __init__(self, turn: int, number: int) -> None:
        self.standing = Standing(0, turn, number)
        self.tasks = 0
        """How many in flight are on its behalf. With the last of them it is forgotten."""
        self.places: dict[Entrant, Callable[[Any], None]] = {}
        """Where it waits, and what places it by its standing there."""

    def change(self, *, held: int, turn: int | None = None) -> None:
        """It holds more by `held`, or less; and has just had its turn, if that is given."""
        standing = self.standing
        last = standing.turn if turn is None else turn
        self.standing = Standing(standing.held + held, last, standing.number)
        for entrant, place in self.places.items():
            place(entrant)


class Party(NamedTuple):
    """On whose behalf a task runs. Fairness is over tenants, then over invocations of each."""

    tenant_name: Hashable
    invocation_name: Hashable
    tenant: Account
    invocation: Account


def names_of(action: LoadedAction) -> tuple[Hashable, Hashable]:
    """The tenant that sent `action`, a client at an instance, and its invocation."""
    tenant = (action.namespace, action.principal)
    return tenant, (tenant, action.metadata.tool_invocation_id)


class Ledger:
    """The accounts of everybody who has something in flight."""

    def __init__(self) -> None:
        self._accounts: dict[Hashable, Account] = {}
        self._turns = 0
        self._opened = 0

    def __len__(self) -> int:
        return len(self._accounts)

    def join(self, action: LoadedAction) -> Party:
        """A task is on behalf of whoever sent `action`, until `leave`."""
        tenant, invocation = names_of(action)
        party = Party(
            tenant, invocation, self._open(("tenant", tenant)), self._open(("run", invocation))
        )
        party.tenant.tasks += 1
        party.invocation.tasks += 1
        return party

    def leave(self, party: Party) -> None:
        """A task is no longer on behalf of `party`."""
        self._close(("tenant", party.tenant_name), party.tenant)
        self._close(("run", party.invocation_name), party.invocation)

    def take(self, party: Party, held: int) -> None:
        """`party` has its turn, and holds more by `held`."""
        self._turns += 1
        # Even, so that who comes before the next turn is placed before this one, and behind those
        # whose last turn was earlier.
        party.tenant.change(held=held, turn=2 * self._turns)
        party.invocation.change(held=held, turn=2 * self._turns)

    def give_back(self, party: Party, held: int) -> None:
        """`party` holds less by `held`."""
        party.tenant.change(held=-held)
        party.invocation.change(held=-held)

    def _open(self, key: Hashable) -> Account:
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = Account(2 * self._turns - 1, self._opened)
            self._opened += 1
        return account

    def _close(self, key: Hashable, account: Account) -> None:
        account.tasks -= 1
        if not account.tasks:
            del self._accounts[key]


Key = tuple[Level, Standing]


class Entrant:
    """A party that waits somewhere."""

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
    than the logarithm of the number of parties.
    """

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
        entrant.account.places[entrant] = self.place
        self.place(entrant)

    def leave(self, name: Hashable) -> None:
        """The entrant of this name waits here no longer."""
        entrant = self._entrants.pop(name)
        del entrant.account.places[entrant]

    def place(self, entrant: E) -> None:
        """Place `entrant` by its key, which may have changed."""
        if len(self._entries) > 2 * len(self._entrants) + _FEW_STALE:
            self._entries = [(e.key, i, e) for i, e in enumerate(self._entrants.values())]
            heapq.heapify(self._entries)
        self._placed += 1
        heapq.heappush(self._entries, (entrant.key, self._placed, entrant))

    def first(self) -> E | None:
        """The one whose turn it is."""
        while self._entries:
            key, _, entrant = self._entries[0]
            if entrant in entrant.account.places and entrant.key == key:
                return entrant
            heapq.heappop(self._entries)
        return None
