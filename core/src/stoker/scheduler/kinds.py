"""What tasks ask for, held against what executors offer, and remembered. Pure."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping

from stoker.action import LoadedAction
from stoker.errors import FailedPrecondition
from stoker.resources import Request, requested
from stoker.scheduler.matching import Amounts, Matching, Offer, Requirements

_REMEMBERED = 1024
"""How many platforms are remembered: more than a few builds ask for at a time."""


class Kind:
    """What tasks have in common that can take each other's place. Equal by what it says."""

    __slots__ = ("_hash", "amounts", "eligible", "request")

    def __init__(self, eligible: frozenset[str], request: Request, amounts: Amounts = ()) -> None:
        self.eligible = eligible
        """The executors that satisfy their requirements, and are large enough."""
        self.request = request
        self.amounts = amounts
        # Every change of a queue looks one up.
        self._hash = hash((eligible, request, amounts))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Kind) and self._facts == other._facts

    @property
    def _facts(self) -> Hashable:
        return self.eligible, self.request, self.amounts


class Kinds:
    """Tells the kind of each action."""

    def __init__(self, offers: Mapping[str, Offer], matching: Matching) -> None:
        self._offers = offers
        self._matching = matching
        self._known: dict[Hashable, Kind] = {}

    def of(self, action: LoadedAction, executors: Collection[str]) -> Kind:
        """The kind of `action` where it may run on `executors`.

        Raises InvalidRequest where its platform asks for no amount of anything, and
        FailedPrecondition where none of them can ever run it (EXE-13).
        """
        # A build asks for a handful of platforms, thousands of times.
        key = (*action.platform.items(), *executors)
        kind = self._known.get(key)
        if kind is None:
            kind = self._find(action, executors)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = kind
        return kind

    def _find(self, action: LoadedAction, executors: Collection[str]) -> Kind:
        needs = self._matching.requirements(action.platform, requested(action.platform))
        eligible = frozenset(
            name for name in executors if self._matching.satisfies(self._offers[name], needs)
        )
        if not eligible:
            raise FailedPrecondition(self._explain(needs, executors))
        return Kind(eligible, needs.request, needs.amounts)

    def _explain(self, needs: Requirements, executors: Collection[str]) -> str:
        reasons = [
            f"executor {name!r}: {'; '.join(self._matching.differences(self._offers[name], needs))}"
            for name in executors
        ]
        return f"no executor matches the action's platform: {'. '.join(reasons)}"
